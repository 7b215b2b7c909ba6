"""A planted motif is found, named, drawn and measured; motifs that are not there are not."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from drawn import pictures

import megabase as mb
from megabase.cli.main import main
from megabase.errors import InputError, InputWarning
from megabase.genome.alphabet import decode, encode, reverse_complement
from megabase.inference.motifs import find_seqlets
from megabase.models.cnn import GenomicCNNConfig, GenomicCNNForSequenceClassification
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.tokenizers.character import DNATokenizer

AP1, LENGTH, AT = "TGACTCA", 120, 52
OTHERS = (
    "CACGTG",
    "GATAAG",
    "CCAATCA",
    "TGTTTAC",
    "TTTCCGGGAA",
    "GGGCGGGGC",
    "AACCGGTT",
    "TATAAAA",
)


def matrix(consensus: str) -> np.ndarray[Any, Any]:
    return 0.03 + 0.88 * np.eye(4)[["ACGT".index(base) for base in consensus]]


def write_meme(path: Path, few: bool = False) -> Path:
    """AP-1 with a base on both sides, real other motifs, and made-up ones up to 30."""
    rng = np.random.default_rng(5)
    motifs = {f"MA{i} {name}": matrix(name) for i, name in enumerate(OTHERS)}
    motifs["MA0099.3 FOS::JUN"] = matrix(f"A{AP1}T")
    for i in range(0 if few else 21):
        motifs[f"random {i}"] = rng.dirichlet([0.3] * 4, 9)
    text = "MEME version 4\n\nALPHABET= ACGT\n\nstrands: + -\n\n"
    for name, rows in motifs.items():
        text += f"MOTIF {name}\nletter-probability matrix: alength= 4 w= {len(rows)} nsites= 20\n"
        text += "".join(" ".join(f"{x:.6f}" for x in row) + "\n" for row in rows) + "URL x\n\n"
    path.write_text(text)
    return path


def detector() -> GenomicCNNForSequenceClassification:
    """Its "yes" grows by TGACTCA on either strand, and a third as much by all but one base."""
    config = GenomicCNNConfig(
        max_length=LENGTH,
        embedding_dim=4,
        id2label={0: "no", 1: "yes"},
        label2id={"no": 0, "yes": 1},
    )
    model = GenomicCNNForSequenceClassification(config).eval()
    first, second, third = (model.cnn_model[k] for k in (0, 4, 7))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for k in (1, 5, 8):
            model.cnn_model[k].weight.fill_(1)
        model.embeddings.weight[7:11] = torch.eye(4)
        for number, text in enumerate((AP1, decode(reverse_complement(encode(AP1))))):
            first.weight[number, :, :7] = torch.tensor(np.eye(4)[encode(text)].T)
            first.bias[number] = -5.5
        second.weight[0, :2] = third.weight[0, 0] = 1 / 4
        model.dense_model[0].weight[0] = model.dense_model[1].weight[0, 0] = 1
        model.dense_model[1].bias[0] = -2
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model, 40 sequences, AP-1 planted in every second one (alternately on both strands)."""
    folder = tmp_path_factory.mktemp("motifs")
    detector().save_pretrained(folder / "model")
    DNATokenizer(model_max_length=LENGTH).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    lines = []
    for number in range(40):
        text = "".join(rng.choice(list("ACGT"), LENGTH))
        if number % 2 == 0:
            motif = AP1 if number % 4 == 0 else "TGAGTCA"
            text = text[:AT] + motif + text[AT + 7 :]
        lines.append(f">s{number}\n{text}\n")
    (folder / "in.fa").write_text("".join(lines))
    write_meme(folder / "motifs.meme")
    return folder


def texts(folder: Path) -> list[str]:
    return (folder / "in.fa").read_text().split()[1::2]


def attribute(folder: Path, *options: str, source: str = "in.fa", end: str = "parquet") -> None:
    arguments = ["attribute", str(folder / "model"), source, "-o", f"why.{end}", "--target", "yes"]
    assert main([*arguments, "--steps", "32", "--workers", "1", "--quiet", *options]) == 0


def test_a_planted_motif_is_found_named_and_drawn(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pictures() as seen:
        attribute(
            folder, "--seqlets", "s.tsv", "--motifs", str(folder / "motifs.meme"),
            "--logo", "logo.png", "--logo-of", "s4", source=str(folder / "in.fa"),
        )  # fmt: skip
    table = pl.read_csv("s.tsv", separator="\t", comment_prefix="#")
    assert '"motifs.meme":"' in Path("s.tsv").read_text().split("\n")[0]  # its checksum
    named = table.filter(pl.col("motif").is_not_null())
    assert set(named["motif"]) == {"MA0099.3 FOS::JUN"}  # and none of the 29 others
    planted = named.filter(pl.col("start") <= AT, pl.col("end") >= AT + 7)
    assert planted["name"].to_list() == [f"s{number}" for number in range(0, 40, 2)]
    assert planted["strand"].to_list() == ["+", "-"] * 10
    assert planted["contribution"].min() > 0.5
    for name, start, end, bases in planted.select("name", "start", "end", "bases").iter_rows():
        assert bases == texts(folder)[int(name[1:])][start:end]
    assert max(planted["end"] - planted["start"]) <= 11
    # What else is named is AP-1 but for one base, which the model counts too.
    for bases in named.join(planted, on=["name", "start"], how="anti")["bases"]:
        both = bases, decode(reverse_complement(encode(bases)))
        assert max(
            sum(a == b for a, b in zip(one[k : k + 7], AP1, strict=False))
            for one in both for k in range(len(one) - 5)
        ) >= 5  # fmt: skip
    picture = seen[0]
    picture.check(across=0.05)
    assert picture.texts.count("MA0099.3 FOS::JUN") == named.filter(pl.col("name") == "s4").height
    (bar,) = (x for x in picture.panels[0].axes.lines if x.get_linewidth() == 2)
    (row,) = named.filter(pl.col("name") == "s4").rows(named=True)
    assert list(bar.get_xdata()) == [row["start"] + 0.5, row["end"] + 0.5]  # bases count from 1


def test_seqlets_of_intervals_lie_on_the_genome(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    genome = "".join(texts(folder))
    Path("g.fa").write_text(f">chr1\n{genome}\n")
    rows = [
        f"chr1\t{k * LENGTH}\t{(k + 1) * LENGTH}\tr{k}\t0\t{'+-'[k // 8 % 2]}\n" for k in range(40)
    ]
    Path("in.bed").write_text("".join(rows))
    options = ("--genome", "g.fa", "--motifs", str(folder / "motifs.meme"))
    attribute(folder, *options, "--seqlets", "s.bed", source="in.bed", end="npz")
    attribute(folder, *options, "--seqlets", "s.parquet", source="in.bed")
    bed = mb.Genome("g.fa")
    from megabase.genome.tables import read_bed

    found = read_bed("s.bed", bed).filter(pl.col("name") == "MA0099.3_FOS::JUN")
    table = pl.read_parquet("s.parquet").filter(pl.col("motif").is_not_null())
    assert found["start"].to_list() == table["start"].to_list()
    assert set(found["contig"]) == {"chr1"}
    assert found["score"].max() == 1000
    for k in range(0, 40, 2):
        start = k * LENGTH + AT
        (row,) = found.filter(pl.col("start") <= start, pl.col("end") >= start + 7).rows(named=True)
        assert row["strand"] == "+-"[k % 4 // 2]  # that of the genome, whichever was read
        assert genome[start : start + 7] == (AP1 if k % 4 == 0 else "TGAGTCA")


def test_arrays_of_tf_modisco(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    source = str(folder / "in.fa")
    attribute(folder, "--modisco", "m", source=source, end="npz")
    with np.load("m.ohe.npz") as ohe, np.load("m.attr.npz") as attr, np.load("why.npz") as why:
        assert ohe.files == attr.files == ["arr_0"]
        bases, shares = ohe["arr_0"], attr["arr_0"]
        values = why["values"].reshape(40, LENGTH)
    assert bases.shape == shares.shape == (40, 4, LENGTH)
    assert ["".join("ACGT"[k] for k in one.argmax(0)) for one in bases] == texts(folder)
    np.testing.assert_allclose((bases * shares).sum(1), values, atol=1e-5)
    # What another base would contribute, by the definition: (X - X') times the same slopes.
    np.testing.assert_allclose(shares.sum(1), 0, atol=1e-5)
    assert shares[0, :, AT].argmax() == "ACGT".index("T")
    base = ["attribute", str(folder / "model"), "odd.fa", "-o", "o.npz", "--target", "yes"]
    Path("odd.fa").write_text(">a\nACGTACGT\n>b\nACGTA\n")
    for more, message in (
        ([], "sequences of one length, and b 5 and a 8 bases"),
        (["--baseline", "n"], "use baseline uniform"),
    ):
        assert main([*base, "--modisco", "x", *more]) == 2
        assert message in capsys.readouterr().err
    assert main([*base, "--motifs", str(folder / "motifs.meme")]) == 2
    assert "--motifs is for names in a table" in capsys.readouterr().err
    assert main([*base[:-3], "o.bw", *base[-2:], "--seqlets", "s.tsv"]) == 2
    assert main([*base, "--seqlets", "s.bed"]) == 2
    capsys.readouterr()
    assert main([*base, "--seqlets", "s.tsv", "--shard", "1/2"]) == 2
    assert "--seqlets is made of all sequences: leave --shard out" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "memelite", None)
    assert main([*base, "--seqlets", "s.tsv", "--motifs", str(folder / "motifs.meme")]) == 2
    assert "pip install 'megabase[motifs]'" in capsys.readouterr().err
    assert not list(tmp_path.glob("o.*"))


# -- seqlets and motifs ---------------------------------------------------------------------------


def test_seqlets_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(2)
    values = [rng.choice([0, 0, 0, 1, -2, 5], n).astype(np.float32) for n in (14, 9, 3)]
    letters = ["".join(rng.choice(list("ACGT"), len(one))) for one in values]
    letters[0] = letters[0][:4] + "N" + letters[0][5:]
    every = np.concatenate(values)
    threshold, shortest, longest = 0.2, 2, 4
    sums = {
        n: np.array([sum(one) for one in itertools.product(every, repeat=n)])
        for n in range(shortest, longest + 1)
    }

    def p(one: Any, text: str, side: int) -> float:
        total = float(one.sum())
        chance = (sums[len(one)] >= total) if side > 0 else (sums[len(one)] <= total)
        return 1.0 if "N" in text else float(chance.mean())

    expected = []
    for number, (one, text) in enumerate(zip(values, letters, strict=True)):
        passing = []
        for length in range(shortest, longest + 1):
            for start in range(len(one) - length + 1):
                inner = [
                    (i, j) for i in range(start, start + length)
                    for j in range(i + shortest, start + length + 1)
                ]  # fmt: skip
                for side in (1, -1):
                    chances = [p(one[i:j], text[i:j], side) for i, j in inner]
                    if max(chances) < threshold:
                        own = p(one[start : start + length], text[start : start + length], side)
                        passing.append((-length, own, start))
        free = set(range(len(one)))
        for length, own, start in sorted(passing):
            if free >= set(range(start, start - length)):
                free -= set(range(start, start - length))
                expected.append((number, start, start - length, pytest.approx(own)))
    found = find_seqlets(values, letters, threshold=threshold, lengths=(shortest, longest))
    assert len(expected) > 3
    assert found.select("number", "start", "end", "p").rows() == sorted(
        expected, key=lambda r: r[:2]
    )


def test_few_motifs_are_said_and_q_is_over_all_seqlets(tmp_path: Path) -> None:
    motifs = mb.read_motifs(write_meme(tmp_path / "few.meme", few=True))
    rng = np.random.default_rng(3)
    letters = ["".join(rng.choice(list("ACGT"), 60)) for _ in range(20)]
    values = [rng.normal(0, 0.1, 60) for _ in letters]
    letters[7] = letters[7][:20] + AP1 + letters[7][27:]
    values[7][20:27] += 1
    with pytest.warns(InputWarning, match="compared with 9 motifs"):
        found = find_seqlets(values, letters, motifs)
    (named,) = found.filter(pl.col("motif").is_not_null()).rows(named=True)
    assert (named["number"], named["motif"]) == (7, "MA0099.3 FOS::JUN")
    p = sorted(min(1, 9 * one) for one in found["motif_p"])
    expected = [min(x * len(p) / (k + 1) for k, x in enumerate(p) if x >= one) for one in p]
    np.testing.assert_allclose(sorted(found["motif_q"]), np.minimum(expected, 1))


def test_sequences_without_contributions_have_no_seqlets() -> None:
    assert find_seqlets([np.zeros(50)], ["A" * 50]).height == 0
    assert find_seqlets([], []).height == 0
    assert find_seqlets([np.ones(2)], ["AC"]).height == 0
    with pytest.raises(InputError, match="a contribution for each base"):
        find_seqlets([np.zeros(4)], ["ACGTA"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MEME version 4\n", "holds no letter-probability matrix"),
        ("MOTIF a\nURL x\n", "matrix of a"),
        ("MOTIF a\nletter-probability matrix: w= 1\n1 0 0\n", "line 3: expected probabilities"),
        ("MOTIF a\nletter-probability matrix: w= 1\n.5 .5 .5 0\n", "line 3: expected prob"),
        ("MOTIF a\nletter-probability matrix: w= 1\n1 0 0 x\n", "line 3: expected prob"),
        ("MOTIF a\nletter-probability matrix: w= 1\n1.2 -.2 . 0\n", "line 3: expected prob"),
        ("MOTIF a\nletter-probability matrix:\n1 0 0 0\nMOTIF a\n", "line 4: expected a name"),
    ],
)
def test_broken_meme_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.meme").write_text(text)
    with pytest.raises(InputError, match=message):
        mb.read_motifs(tmp_path / "m.meme")


def test_meme_files_are_read_as_memelite_reads_them(folder: Path) -> None:
    from memelite.io import read_meme

    ours, theirs = mb.read_motifs(folder / "motifs.meme"), read_meme(folder / "motifs.meme")
    assert list(ours) == list(theirs)
    for name, rows in ours.items():
        np.testing.assert_allclose(rows.T, theirs[name], atol=1e-4)


# -- what-ifs -------------------------------------------------------------------------------------


def test_marginalizing_tells_the_planted_motif_from_others(folder: Path) -> None:
    model, motifs = mb.load(folder / "model"), mb.read_motifs(folder / "motifs.meme")
    backgrounds = texts(folder)[1::4]
    options: Any = {"target": "yes", "shuffles": 2, "seed": 1}
    effects = {name: model.marginalize(m, backgrounds, **options) for name, m in motifs.items()}
    means = {name: abs(one.mean) for name, one in effects.items()}
    assert max(means, key=lambda name: means[name]) == "MA0099.3 FOS::JUN"
    assert effects["MA0099.3 FOS::JUN"].mean > 1
    assert effects["MA0099.3 FOS::JUN"].after.shape == (20, 1)
    assert max(one for name, one in means.items() if "FOS" not in name) < 0.15
    (text, *_) = backgrounds
    places = model.marginalize(AP1, [text], at=[10, 50], target="yes", output="probability")
    changed = [text[:at] + AP1 + text[at + 7 :] for at in (10, 50)]
    p = model.predict([text, *changed]).values[:, 1]
    np.testing.assert_allclose(places.difference[0], p[1:] - p[0], atol=1e-6)
    assert places.mean == pytest.approx((p[1:] - p[0]).mean(), abs=1e-6)
    assert places.spread == pytest.approx(abs(p[2] - p[1]) / 2**0.5, abs=1e-6)
    assert "probability of yes" in repr(places)


def test_ablating_removes_the_motif(folder: Path) -> None:
    model, with_motif = mb.load(folder / "model"), texts(folder)[::4]
    motif = model.ablate(with_motif, AT, AT + 7, target="yes", shuffles=10)
    beside = model.ablate(with_motif, 10, 17, target="yes", shuffles=10)
    assert motif.after.shape == (10, 10)
    assert motif.mean < -1
    assert abs(beside.mean) < 0.1
    again = model.ablate(with_motif, [AT] * 10, AT + 7, target="yes", shuffles=10)
    np.testing.assert_array_equal(again.after, motif.after)  # by the seed
    other = model.ablate(with_motif, AT, AT + 7, target="yes", shuffles=10, seed=1)
    assert (other.after != motif.after).any()


def test_a_language_model_is_asked_about_the_bases_around() -> None:
    torch.manual_seed(0)
    hyena = HyenaDNAForCausalLM(
        HyenaDNAConfig(d_model=16, n_layer=1, max_seq_len=66, initializer_range=0.3)
    )
    model, text = mb.load(hyena, device="cpu"), "ACGTTGCATTGACCATTGACAACGT"
    found = model.marginalize("GATTACA", [text, text[:20]], at=5)
    for row, one in enumerate((text, text[:20])):
        for seen, bases in ((found.before, one), (found.after, one[:5] + "GATTACA" + one[12:])):
            each = np.array(model.score([bases], per_base=True).table["log_probs"][0])
            each[0] = 0  # a causal model says nothing of the first base
            assert seen[row, 0] == pytest.approx(each.sum() - each[5:12].sum(), abs=1e-4)
    assert found.output == "log-likelihood around"
    with pytest.raises(InputError, match="leave target and output out"):
        model.marginalize("A", [text], target="yes")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.marginalize("TGANTCA", ["ACGT" * 30], target=1), "a motif is letters"),
        (lambda model: model.marginalize(AP1, ["ACGT"], target=1), "sequence 1 has 4 bases"),
        (lambda model: model.marginalize(AP1, ["ACGT" * 30], at=115, target=1), "115 to 122"),
        (lambda model: model.marginalize(AP1, [], target=1), "found none"),
        (lambda model: model.marginalize(AP1, ["ACGT" * 30]), "name one as the target: no, yes"),
        (lambda model: model.ablate(["ACGT" * 30], 9, 9, target=1), "found 9 to 9"),
        (lambda model: model.ablate(["ACGT" * 30], 0, 9, target=1, output="x"), "output is one"),
        (lambda model: model.ablate(["ACGT" * 30], 0, 9, sed=1), "no option sed"),
        (lambda model: model.ablate(["ACGT" * 30], [0, 1], 9, target=1), "one start and end, or 1"),
    ],
)
def test_what_ifs_that_cannot_be_are_refused(folder: Path, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(mb.load(folder / "model"))
