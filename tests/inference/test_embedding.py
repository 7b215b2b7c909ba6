"""Embeddings: the same alone and in a batch, pooled over bases only, chunks counted, stitched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from megabase.data.sources import SequenceInput
from megabase.errors import InputError, OutputError
from megabase.genome.alphabet import encode, reverse_complement
from megabase.inference import jobs
from megabase.inference.embedding import Embedder, embed, embed_file
from megabase.models.dnabert import DNABERTConfig, DNABERTForMaskedLM, DNABERTModel
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAModel
from megabase.models.tokenizers.kmer import DNABERTTokenizer

LONGEST = 66


def _model(**settings: Any) -> HyenaDNAModel:
    torch.manual_seed(0)
    return HyenaDNAModel(HyenaDNAConfig(d_model=16, n_layer=2, max_seq_len=LONGEST, **settings))


def _sequences(*lengths: int) -> list[str]:
    rng = np.random.default_rng(7)
    return ["".join(rng.choice(list("ACGTN"), n)) for n in lengths]


def _states(model: Any, text: str) -> tuple[Tensor, ...]:
    with torch.no_grad():
        ids = torch.tensor([["ACGTN".index(c) + 7 for c in text]])
        return model.eval()(input_ids=ids, output_hidden_states=True).hidden_states


@pytest.mark.parametrize("mode", ["none", "two_sided"])
@pytest.mark.parametrize("pooling", ["mean", "max", "sum", "first", "last"])
def test_a_vector_is_that_of_the_sequence_alone(mode: str, pooling: Any) -> None:
    model = _model(bidirectional=mode)
    texts = _sequences(60, 1, 33, 60, 34, 50)
    found = embed(model, texts, pooling=pooling, batch_tokens=200)
    for text, vector in zip(texts, found.vectors, strict=True):
        rows = _states(model, text)[-1][0].double()
        slow = {
            "mean": rows.mean(0), "max": rows.amax(0), "sum": rows.sum(0),
            "first": rows[0], "last": rows[-1],
        }[pooling]  # fmt: skip
        torch.testing.assert_close(torch.tensor(vector).double(), slow, atol=1e-5, rtol=1e-4)
    assert found.lengths.tolist() == [60, 1, 33, 60, 34, 50]
    assert set(found.chunks.tolist()) == {1}


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_layers_are_those_of_the_model(layer: int) -> None:
    model = _model()
    (text,) = _sequences(40)
    (rows,) = Embedder(model, layer=layer).per_base([encode(text)])
    np.testing.assert_allclose(rows, _states(model, text)[layer][0].numpy(), atol=1e-6)


def test_both_strands_are_averaged() -> None:
    model = _model()
    codes = encode(_sequences(50)[0])
    one = Embedder(model).pooled([codes, reverse_complement(codes)])[0]
    both = Embedder(model, strands="both").pooled([codes, reverse_complement(codes)])[0]
    np.testing.assert_allclose(both[0], one.mean(0), atol=1e-6)
    np.testing.assert_allclose(both[0], both[1], atol=1e-6)


def test_long_sequences_are_refused_or_cut_as_asked() -> None:
    model = _model()
    text = _sequences(2 * LONGEST + 10)[0]
    with pytest.raises(InputError, match=r"142 bases, more than .* reads"):
        embed(model, [text])
    pieces = [text[:LONGEST], text[LONGEST : 2 * LONGEST], text[2 * LONGEST :]]
    alone = embed(model, pieces).vectors
    chunks = embed(model, [text], long="chunks")
    assert chunks.chunks.tolist() == [3]
    weighted = np.average(alone, axis=0, weights=[66, 66, 10])
    np.testing.assert_allclose(chunks.vectors[0], weighted, atol=1e-6)
    published = embed(model, [text], long="published").vectors[0]
    np.testing.assert_allclose(published, alone.mean(0), atol=1e-6)


def test_vectors_of_bases_are_stitched_over_long_sequences() -> None:
    model = _model()
    text = _sequences(150)[0]
    ready = Embedder(model, long="chunks", batch_tokens=66)
    (rows,) = ready.per_base([encode(text)])
    starts = [0, 33, 66, 84]  # every half window, the last one moved back to the end
    for place in range(150):
        start = next(s for s in starts if s <= place < s + LONGEST)
        alone = _states(model, text[start : start + LONGEST])[-1][0, place - start]
        np.testing.assert_allclose(rows[place], alone.numpy(), atol=1e-5)
    with pytest.raises(InputError, match="more than"):
        list(Embedder(model).per_base([encode(text)]))


def test_the_training_mode_is_restored() -> None:
    model = _model(embed_dropout=0.5).train()
    first, second = (embed(model, _sequences(30)).vectors for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert model.training


def test_special_tokens_are_read_but_not_pooled(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DNABERTModel(
        DNABERTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                      intermediate_size=16, vocab_size=69)
    )  # fmt: skip
    text = "ACGTACGGT"
    ids = torch.tensor([DNABERTTokenizer(k=3)(text)["input_ids"]])
    assert ids.shape == (1, len(text) - 2 + 2)
    with torch.no_grad():
        rows = model.eval()(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, 1:-1]
    with pytest.raises(InputError, match="name that"):
        Embedder(model)
    model.save_pretrained(tmp_path)
    DNABERTTokenizer(k=3).save_pretrained(tmp_path)
    ready = Embedder(tmp_path)
    np.testing.assert_allclose(ready.pooled([encode(text)])[0][0], rows.mean(0).numpy(), atol=1e-6)
    with pytest.raises(InputError, match="several bases"):
        list(ready.per_base([encode(text)]))


def test_a_masked_model_without_a_pooler_is_embedded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DNABERTForMaskedLM(
        DNABERTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                      intermediate_size=16, vocab_size=69)
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path)
    tokenizer = DNABERTTokenizer(k=3)
    tokenizer.save_pretrained(tmp_path)
    ids = torch.tensor([tokenizer("ACGTACGGT")["input_ids"]])
    with torch.no_grad():
        rows = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0, 1:-1]
    found = Embedder(tmp_path).pooled([encode("ACGTACGGT")])[0][0]
    np.testing.assert_allclose(found, rows.mean(0).numpy(), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 3}, "layers 0 to 2"),
        ({"pooling": "median"}, "pooling is one of"),
        ({"long": "cut"}, "long is one of"),
    ],
)
def test_options_that_do_not_exist_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Embedder(_model(), **options)


# -- files ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved model, a genome, and the same three stretches as FASTA and BED."""
    from megabase.models.tokenizers.character import DNATokenizer

    _model().save_pretrained(tmp_path / "model")
    DNATokenizer(model_max_length=LONGEST).save_pretrained(tmp_path / "model")
    genome = _sequences(300)[0]
    (tmp_path / "genome.fa").write_text(f">chr1\n{genome}\n")
    (tmp_path / "three.bed").write_text(
        "chr1\t10\t60\ta\t0\t+\nchr1\t100\t133\tb\t0\t+\nchr1\t200\t266\tc\t0\t+\n"
    )
    (tmp_path / "three.fa").write_text(
        f">a\n{genome[10:60]}\n>b\n{genome[100:133].lower()}\n>c\n{genome[200:266]}\n"
    )
    return tmp_path


def _embed(folder: Path, name: str, **options: Any) -> Path:
    source = SequenceInput(str(folder / "three.fa"))
    return embed_file(str(folder / "model"), source, folder / name, workers=1, **options)


def test_every_format_holds_the_same_matrix(folder: Path) -> None:
    import anndata
    import pandas as pd
    import zarr

    files = [_embed(folder, f"out{s}") for s in (".parquet", ".npy", ".npz", ".zarr", ".h5ad")]
    frame = pl.read_parquet(files[0])
    vectors = frame["embedding"].to_numpy()
    assert frame["name"].to_list() == ["a", "b", "c"]
    assert np.stack(pd.read_parquet(files[0])["embedding"].tolist()).shape == vectors.shape
    np.testing.assert_array_equal(np.load(files[1]), vectors)
    with np.load(files[2]) as found:
        np.testing.assert_array_equal(found["embedding"], vectors)
        assert found["name"].tolist() == ["a", "b", "c"]
    group: Any = zarr.open_group(str(files[3]), mode="r")
    np.testing.assert_array_equal(group["embedding"][:], vectors)
    data = anndata.read_h5ad(files[4])
    np.testing.assert_array_equal(data.X, vectors)
    assert data.obs["name"].tolist() == ["a", "b", "c"]
    assert '"verb":"embed"' in data.uns["megabase"]
    assert not list(folder.glob("*.partial"))


ODD_NAMES = (
    "gene10",
    "gene2",
    "",
    "10",
    "2",
    "gene2",
    "é",
    "nan",
    "",
    "a/b",
    "gene2-1",
    "\u03b2 x",
)


# anndata sets an option that pandas 3 has deprecated, on every view.
@pytest.mark.filterwarnings("ignore:The 'mode.chained_assignment' option is deprecated")
def test_other_libraries_read_odd_and_repeated_names(folder: Path) -> None:
    """Natural and plain order of contigs and names differ, names repeat, are empty or numbers."""
    import anndata
    import zarr

    contigs = ["chr1", "chr2", "chr10"]
    genome = (folder / "genome.fa").read_text().split("\n")[1]
    (folder / "odd.fa").write_text("".join(f">{name}\n{genome}\n" for name in contigs))
    (folder / "odd.bed").write_text(
        "".join(f"{contigs[i % 3]}\t{i}\t{i + 20}\t{n}\n" for i, n in enumerate(ODD_NAMES))
    )
    source = SequenceInput(str(folder / "odd.bed"), str(folder / "odd.fa"))
    h5ad, group_path, npz = (
        embed_file(str(folder / "model"), source, folder / f"odd{end}", workers=1)
        for end in (".h5ad", ".zarr", ".npz")
    )
    data = anndata.read_h5ad(h5ad)
    with np.load(npz) as found:
        names = found["name"].tolist()
        np.testing.assert_array_equal(data.X, found["embedding"])
        assert data.obs["contig"].tolist() == found["contig"].tolist() == (contigs * 4)[:12]
    assert data.obs["name"].tolist() == names
    assert data.obs_names.is_unique
    assert data.obs_names.tolist()[:6] == [*names[:5], "gene2-2"]
    assert data.var_names.tolist() == [f"h{i}" for i in range(data.n_vars)]
    group: Any = zarr.open_group(str(group_path), mode="r")
    assert group["name"][:].tolist() == names
    assert data[data.obs["contig"] == "chr10"].n_obs == 4


def test_places_of_a_bed_file_give_the_vectors_of_their_sequences(folder: Path) -> None:
    bed = SequenceInput(str(folder / "three.bed"), str(folder / "genome.fa"))
    target = embed_file(str(folder / "model"), bed, folder / "bed.parquet", workers=1)
    frame = pl.read_parquet(target)
    own = pl.read_parquet(_embed(folder, "fa.parquet"))
    np.testing.assert_array_equal(frame["embedding"].to_numpy(), own["embedding"].to_numpy())
    assert frame.select("contig", "start", "end").rows()[1] == ("chr1", 100, 133)


def test_alleles_of_a_variant_have_the_same_number_of_bases(folder: Path) -> None:
    genome = "".join((folder / "genome.fa").read_text().split("\n")[1:])
    place = genome.index("A", 150)
    (folder / "v.vcf").write_text(
        "##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
        f"chr1\t{place + 1}\t.\tA\tACCC,T\t.\t.\t.\n"
    )
    source = SequenceInput(str(folder / "v.vcf"), str(folder / "genome.fa"), window=20)
    ref, insertion, _, snv = (item.codes for item in source.read())
    before, after = genome[place - 10 : place], genome[place + 1 :]
    for codes, allele in ((ref, "A"), (insertion, "ACCC"), (snv, "T")):
        np.testing.assert_array_equal(codes, encode((before + allele + after)[:20]))


def test_chunks_and_batches_do_not_show(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.load(_embed(folder, "whole.npy"))
    monkeypatch.setattr("megabase.data.sources._CHUNK_SEQUENCES", 1)
    np.testing.assert_allclose(np.load(_embed(folder, "single.npy")), whole, atol=1e-6)
    small = np.load(_embed(folder, "small.npy", batch_tokens=1))
    np.testing.assert_allclose(small, whole, atol=1e-6)


def test_an_interrupted_run_goes_on_to_the_same_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megabase.data.sources._CHUNK_SEQUENCES", 1)
    whole = _embed(folder, "whole.npz").read_bytes()
    written = jobs._write_part

    def stop_at_the_last(result: Any, path: Path) -> None:
        if result["name"][0] == "c":
            raise KeyboardInterrupt
        written(result, path)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "_write_part", stop_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            _embed(folder, "again.npz")
    assert not (folder / "again.npz").exists()
    with pytest.raises(OutputError, match="2 finished parts"):
        _embed(folder, "again.npz")
    assert _embed(folder, "again.npz", resume=True).read_bytes() == whole


def test_vectors_of_bases_have_their_positions(folder: Path) -> None:
    target = _embed(folder, "bases.parquet", pooling="none")
    frame = pl.read_parquet(target)
    assert frame.height == 50 + 33 + 66
    assert frame.filter(pl.col("name") == "b")["position"].to_list() == list(range(33))


def test_bad_input_leaves_nothing_behind(folder: Path) -> None:
    with pytest.raises(OutputError, match="expected one of"):
        _embed(folder, "out.csv")
    (folder / "long.fa").write_text(">long\n" + "ACGT" * 40 + "\n")
    source = SequenceInput(str(folder / "long.fa"))
    with pytest.raises(InputError, match=r"long\.fa: sequence long has 160 bases"):
        embed_file(str(folder / "model"), source, folder / "long.npy", workers=1)
    with pytest.raises(InputError, match="whose intervals lie on a genome: name a store"):
        SequenceInput(str(folder / "three.bed"))
    with pytest.raises(InputError, match="neither its ending nor its first line tells"):
        SequenceInput(str(folder / "model" / "config.json"))
    assert not list(folder.glob("long.npy*")) + list(folder.glob("*.partial"))
