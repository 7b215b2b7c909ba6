"""Scores of variants against string surgery, one sequence at a time; reasons; independence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pytest
import torch

import megabase as mb
from megabase.errors import InputError
from megabase.genome.interval import Variant
from megabase.genome.store import Genome
from megabase.genome.vcf import VcfRecord
from megabase.inference.scoring import STRANDS
from megabase.inference.variants.methods import METHODS as METHODS_OF
from megabase.inference.variants.methods import PLACEMENTS, AlleleWindows
from megabase.inference.variants.prefix import HyenaPrefix
from megabase.inference.variants.scorer import score_variants
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.gpt import GPTConfig, GPTForCausalLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.mamba import MambaConfig, MambaForCausalLM

IDS = {"A": 7, "C": 8, "G": 9, "T": 10, "N": 11}
PAIRS = str.maketrans("ACGTN", "TGCAN")
WINDOW = 32


def reverse(text: str) -> str:
    return text.translate(PAIRS)[::-1]


@pytest.fixture(scope="module")
def contigs() -> dict[str, str]:
    rng = np.random.default_rng(7)
    one = "".join(rng.choice(list("ACGTacgt"), 200))
    return {"chr1": one[:100] + "NNNN" + one[104:], "short": "ACGTTGCAACGGTAC"}


@pytest.fixture(scope="module")
def store(contigs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Genome:
    folder = tmp_path_factory.mktemp("genome")
    text = "".join(f">{name}\n{bases}\n" for name, bases in contigs.items())
    (folder / "toy.fa").write_text(text)
    return Genome.build(folder / "toy.fa", folder / "toy.mb")


def hyena(**options: object) -> torch.nn.Module:
    torch.manual_seed(2)
    config = HyenaDNAConfig(d_model=16, n_layer=3, filter_order=8, max_seq_len=130, **options)
    model = HyenaDNAForCausalLM(config).eval()
    with torch.no_grad():  # the first weights are small: make every base count
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    return model


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return hyena()


def vcf_records(contigs: dict[str, str]) -> list[tuple[str, int, str, str]]:
    """Every kind of record: (contig, POS, REF, ALT), 1-based as in VCF."""
    genome = contigs["chr1"].upper()

    def ref(position: int, length: int) -> str:
        return genome[position - 1 : position - 1 + length]

    def other(position: int) -> str:
        return "ACGT"[("ACGT".index(ref(position, 1)) + 1) % 4]

    two_more = [b for b in "ACGT" if b != ref(50, 1)]
    return [
        ("chr1", 40, ref(40, 1), other(40)),
        ("chr1", 41, ref(41, 1).lower(), other(41).lower()),
        ("chr1", 1, ref(1, 1), other(1)),
        ("chr1", 2, ref(2, 1), other(2)),
        ("chr1", 200, ref(200, 1), other(200)),
        ("chr1", 199, ref(199, 2), other(199) + other(200)),
        ("chr1", 50, ref(50, 1), ",".join(two_more)),
        ("chr1", 60, ref(60, 1), ref(60, 1) + "GATTACA"),
        ("chr1", 61, ref(61, 5), ref(61, 1)),
        ("chr1", 70, ref(70, 3), other(70) + ref(71, 1) + other(72)),
        ("chr1", 75, ref(75, 3), other(75)),
        ("chr1", 75, ref(75, 1), other(75) + "ACGT"),
        ("chr1", 95, ref(95, 1), other(95)),
        ("chr1", 110, ref(110, 2), ref(110, 1)),
        ("chr1", 185, ref(185, 5), ref(185, 1)),
        ("chr1", 80, ref(80, 10), other(80) + ref(81, 1) + other(82) + ref(83, 6) + other(89)),
        ("chr1", 120, ref(120, 2), f"{ref(120, 1)},{other(120)}{ref(121, 1)},{ref(120, 2)}TT"),
    ]


def place(
    genome: str, index: int, ref: str, alt: str, placement: str = "centered"
) -> tuple[str, str, int, str, str]:
    """Windows of both alleles by cutting strings; index is 0-based."""
    while ref and alt and ref[0] == alt[0]:
        ref, alt, index = ref[1:], alt[1:], index + 1
    while ref and alt and ref[-1] == alt[-1]:
        ref, alt = ref[:-1], alt[:-1]
    changed = genome[:index] + alt + genome[index + len(ref) :]
    start = index - WINDOW // 2
    if placement == "grid" and max(len(ref), len(alt)) <= 4:
        start = next(s for s in range(-160, 400, 16) if 8 <= index - s < 24)
    while start + WINDOW > min(len(genome), len(changed)):
        start -= 1
    start = max(start, 0)
    return genome[start : start + WINDOW], changed[start : start + WINDOW], index - start, ref, alt


def read(model: torch.nn.Module, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities of A, C, G, T at each base, NaN where nothing predicts it, and states."""
    ids = torch.tensor([[IDS[b] for b in text]])
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True)
        if isinstance(model, CaduceusForMaskedLM):
            hidden = ids.repeat(len(text), 1).fill_diagonal_(3)
            logits = model(input_ids=hidden).logits.diagonal().t()
        else:
            logits = torch.cat((torch.full((1, output.logits.shape[-1]), math.nan),
                                output.logits[0, :-1]))  # fmt: skip
    states = output.hidden_states[-1][0].double().numpy()
    return logits[:, 7:11].double().log_softmax(-1).numpy(), states


def one_minus_cosine(a: np.ndarray, b: np.ndarray) -> float:
    return 1 - float(a @ b / math.sqrt((a @ a) * (b @ b)))


def slow(
    model: torch.nn.Module, genome: str, index: int, ref: str, alt: str, placement: str,
    horizon: int | None = None,
) -> dict[str, float]:  # fmt: skip
    """Every method by its definition, from full passes over both windows."""
    one, two, offset, ref, alt = place(genome, index, ref, alt, placement)
    if horizon is not None:
        one, two = (x[: offset + max(len(ref), len(alt)) + horizon] for x in (one, two))
    (p, states), (q, changed) = read(model, one), read(model, two)
    a = [float(row["ACGT".index(x)]) if x in "ACGT" else math.nan
         for row, x in zip(p, one, strict=True)]  # fmt: skip
    b = [float(row["ACGT".index(x)]) if x in "ACGT" else math.nan
         for row, x in zip(q, two, strict=True)]  # fmt: skip
    count = len(one) - offset - max(len(ref), len(alt))
    behind = [(offset + len(ref) + i, offset + len(alt) + i) for i in range(count)]
    before = [(i, i) for i in range(offset + min(len(ref), len(alt)))]
    divergences = []
    for i, j in behind:
        if one[i] in "ACGT":
            m = np.log((np.exp(p[i]) + np.exp(q[j])) / 2)
            divergences.append(float(np.exp(p[i]) @ (p[i] - m) + np.exp(q[j]) @ (q[j] - m)) / 2)
    flat = [np.concatenate(x) for x in
            zip(*((states[i], changed[j]) for i, j in before + behind), strict=True)]  # fmt: skip
    pooled = [x.mean(0) for x in (states, changed)]
    after = np.nansum([b[j] for _, j in behind]) - np.nansum([a[i] for i, _ in behind])
    return {
        "llr_window": np.nansum(b) - np.nansum(a),
        "llr_after": after,
        "llr_site": sum(b[offset : offset + len(alt)]) - sum(a[offset : offset + len(ref)]),
        "cosine": one_minus_cosine(*pooled),
        "l2": float(np.linalg.norm(pooled[0] - pooled[1])),
        "cosine_flat": one_minus_cosine(*flat),
        "l2_flat": float(np.linalg.norm(flat[0] - flat[1])),
        "jsd": float(np.mean(divergences)) if divergences else 0.0,
    }


def write_vcf(path: Path, rows: list[tuple[str, int, str, str]]) -> Path:
    lines = ["##fileformat=VCFv4.2", "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"]
    lines += [f"{c}\t{p}\t.\t{r}\t{a}\t.\t.\t." for c, p, r, a in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


METHODS = ("llr_window", "llr_after", "llr_site", "cosine", "l2", "cosine_flat", "l2_flat", "jsd")
SOME = {"all": METHODS, "likelihoods": METHODS[:3], "no prefix": ("l2_flat", "jsd")}


def model_of(kind: str) -> torch.nn.Module:
    torch.manual_seed(1)
    if kind == "gpt":
        return GPTForCausalLM(GPTConfig(d_model=16, n_layer=1)).eval()
    if kind == "mamba":
        return MambaForCausalLM(MambaConfig(d_model=16, n_layer=2)).eval()
    if kind == "caduceus":
        return CaduceusForMaskedLM(CaduceusConfig(d_model=8, n_layer=1)).eval()
    return hyena(use_bias=kind == "hyena")


@pytest.mark.parametrize(
    ("kind", "some", "placement", "horizon"),
    [
        *((kind, some, placement, horizon) for kind in ("hyena", "mamba") for some in SOME
          for placement, horizon in (("centered", None), ("grid", None), ("grid", 3))),
        ("hyena", "all", "centered", 1), ("mamba", "all", "centered", 9),
        ("no bias", "all", "grid", None), ("no bias", "likelihoods", "centered", 7),
        ("gpt", "all", "centered", None), ("gpt", "all", "grid", 5),
        ("caduceus", "all", "centered", None), ("caduceus", "all", "grid", 5),
    ],
)  # fmt: skip
def test_every_kind_of_record_equals_string_surgery(
    contigs: dict[str, str],
    store: Genome,
    tmp_path: Path,
    kind: str,
    some: str,
    placement: Literal["centered", "grid"],
    horizon: int | None,
) -> None:
    model, methods, rows = model_of(kind), SOME[some], vcf_records(contigs)
    file = write_vcf(tmp_path / "v.vcf", rows)
    genome = contigs["chr1"].upper()
    expected = []
    for _, position, ref, alts in rows:
        for alt in alts.upper().split(","):
            index = position - 1
            there = slow(model, genome, index, ref.upper(), alt, placement, horizon)
            mirrored = (len(genome) - index - len(ref), reverse(ref.upper()), reverse(alt))
            back = slow(model, reverse(genome), *mirrored, placement, horizon)
            expected.append((there, back))
    for strands, pick in (("forward", 0), ("reverse", 1), ("both", None)):
        table = score_variants(
            model, file, store, window=WINDOW, methods=methods, strands=strands,
            placement=placement, horizon=horizon,
        ).table  # fmt: skip
        first_base = table.select(pl.any_horizontal(pl.col(methods).is_null())).to_series()
        assert table["reason"].to_list() == [
            "NO_BASE_BEFORE" if missing else None for missing in first_base
        ]
        for name in methods:
            wanted = [
                (pair[0][name] + pair[1][name]) / 2 if pick is None else pair[pick][name]
                for pair in expected
            ]
            found = [math.nan if value is None else value for value in table[name]]
            near = 1e-5 if "llr" in name else 2e-7  # others are small
            np.testing.assert_allclose(found, wanted, atol=near, rtol=2e-5, err_msg=name)


def test_alleles_up_to_half_the_window_have_scores(
    contigs: dict[str, str], store: Genome, model: torch.nn.Module
) -> None:
    genome, half = contigs["chr1"].upper(), WINDOW // 2
    for placement in PLACEMENTS:
        for strands in STRANDS:
            for length in (half, half + 1):
                given = [Variant("chr1", 40, genome[40], genome[40] + ("ACGT" * 5)[:length]),
                         Variant("chr1", 40, genome[40 : 41 + length], genome[40])]  # fmt: skip
                reasons = score_variants(
                    model, given, store, window=WINDOW, placement=placement, strands=strands
                ).table["reason"]
                wrong = "ALLELE_TOO_LONG" if length > half else None
                assert reasons.to_list() == [wrong, wrong], (placement, strands, length)


def test_the_fast_reader_is_used_where_it_can_be(model: torch.nn.Module) -> None:
    assert HyenaPrefix.fits(model)
    assert not HyenaPrefix.fits(GPTForCausalLM(GPTConfig(d_model=16, n_layer=1)))
    assert not HyenaPrefix.fits(hyena(hyena_order=3))


@pytest.mark.parametrize("placement", ["centered", "grid"])
def test_batches_and_order_do_not_change_scores(
    contigs: dict[str, str],
    store: Genome,
    model: torch.nn.Module,
    placement: Literal["centered", "grid"],
) -> None:
    rng = np.random.default_rng(3)
    genome = contigs["chr1"].upper()
    variants = [
        Variant("chr1", int(i), genome[i], "ACGT"[("ACGT".index(genome[i]) + 1 + k) % 4])
        for i in rng.integers(0, 99, 60)
        for k in (0, 1)
    ]
    model.train()

    def table(variants: list[Variant], batch_tokens: int = 1 << 16) -> pl.DataFrame:
        return score_variants(
            model, variants, store, window=WINDOW, placement=placement, batch_tokens=batch_tokens
        ).table

    usual = table(variants)
    assert model.training
    model.eval()
    tiny, turned = table(variants, 40), table(variants[::-1]).reverse()
    alone = pl.concat([table([one]) for one in variants[:20]])
    for name in ("llr_window", "llr_after", "llr_site"):
        np.testing.assert_allclose(alone[name], usual[name][:20], atol=1e-5)
        for other in (tiny, turned):
            left = usual[name].fill_null(0).to_numpy()
            np.testing.assert_allclose(other[name].fill_null(0), left, atol=1e-5)


def test_mirrored_variant_has_the_scores_of_the_other_strand(
    contigs: dict[str, str], store: Genome, model: torch.nn.Module, tmp_path: Path
) -> None:
    genome = contigs["chr1"].upper()
    (tmp_path / "back.fa").write_text(f">chr1\n{reverse(genome)}\n")
    ref = genome[59:62]
    variant = Variant("chr1", 59, ref, ref[0])
    mirrored = Variant("chr1", len(genome) - 62, reverse(ref), reverse(ref[0]))
    for placement in PLACEMENTS:
        there, back = (
            score_variants(model, [one], where, window=WINDOW, placement=placement).table
            for one, where in ((variant, store), (mirrored, tmp_path / "back.fa"))
        )
        assert there["llr_window"][0] == pytest.approx(back["llr_window"][0], abs=1e-5)


@pytest.mark.parametrize("window", [2, 3, 5, 32, 33, 1_024])
def test_grid_windows_hold_the_variant_in_their_middle_half_and_are_shared(window: int) -> None:
    view = np.random.default_rng(0).integers(0, 4, 6 * window, dtype=np.uint8)
    starts = set()
    for position in range(2 * window, 4 * window):
        ref = "ACGT"[view[position]]
        one = AlleleWindows.cut(
            view, position, ref, "C" if ref == "A" else "A", window, False, "grid"
        )
        assert not isinstance(one, str)
        assert len(one.ref) == len(one.alt) == window
        # Alleles longer than an eighth of the window, here of windows below 8, are centered.
        if window >= 8:
            assert window // 4 <= one.offset < window // 4 + window // 2
        else:
            assert one.offset == window // 2
        starts.add(position - one.offset)
    assert len(starts) <= (6 if window >= 8 else 2 * window)


def test_what_cannot_be_scored_says_why(
    contigs: dict[str, str], store: Genome, model: torch.nn.Module, tmp_path: Path
) -> None:
    genome = contigs["chr1"].upper()
    wrong = "ACGT"[("ACGT".index(genome[9]) + 1) % 4]
    rows = [
        ("chr9", 5, "A", "C"), ("chr1", 10, wrong, "A"), ("chr1", 10, genome[9], "."),
        ("chr1", 10, genome[9], "<DEL>,*"), ("chr1", 10, genome[9], "N"), ("chr1", 101, "N", "A"),
        ("chr1", 101, "A", "C"), ("chr1", 201, "A", "C"), ("chr1", 200, genome[199] + "A", "A"),
        ("chr1", 10, genome[9], genome[9]), ("short", 3, "G", "T"),
        ("chr1", 60, genome[59], genome[59] + "A" * 40),
        ("chr1", 10, genome[9], f"{wrong},<INS>"), ("chr1", 10, genome[9], f"{genome[9]}[chr1:5["),
        ("chr1", 0, "N", "A"), ("chr1", 190, genome[189:197], genome[189]),
    ]  # fmt: skip
    table = score_variants(model, write_vcf(tmp_path / "v.vcf", rows), store, window=WINDOW).table
    assert table["reason"].to_list() == [
        "UNKNOWN_CONTIG", "REF_MISMATCH", "NO_ALT", "SYMBOLIC_ALT", "SYMBOLIC_ALT",
        "ALT_NOT_BASES", "REF_NOT_BASES", "REF_NOT_BASES", "OUTSIDE_CONTIG", "OUTSIDE_CONTIG",
        "ALT_IS_REF", "CONTIG_TOO_SHORT", "ALLELE_TOO_LONG", None, "SYMBOLIC_ALT", "SYMBOLIC_ALT",
        "OUTSIDE_CONTIG", "TOO_NEAR_END",
    ]  # fmt: skip
    assert table["llr_window"].is_null().to_list() == [reason is not None for reason in
                                                       table["reason"]]  # fmt: skip
    for ref, said in (("N", "found 'N'"), ("A", "REF, or the genome there, holds letters other")):
        record = VcfRecord.of(1, "chr1", 100, ref, "C")
        assert said in record.why_unusable(store, "REF_NOT_BASES")


def test_masked_model_hides_the_allele(contigs: dict[str, str], store: Genome) -> None:
    torch.manual_seed(0)
    masked = CaduceusForMaskedLM(CaduceusConfig(d_model=8, n_layer=1)).eval()
    genome = contigs["chr1"].upper()
    alt = "".join("ACGT"[("ACGT".index(b) + 1) % 4] for b in genome[59:61])
    variants = [
        Variant("chr1", 59, genome[59:61], alt),
        Variant("chr1", 59, genome[59], genome[59] + "T"),
    ]
    table = score_variants(masked, variants, store, window=WINDOW, strands="forward").table
    one, two, offset, *_ = place(genome, 59, genome[59:61], alt)
    ids = torch.tensor([[IDS[b] for b in one]])
    ids[0, offset : offset + 2] = 3
    with torch.no_grad():
        rows = masked(input_ids=ids).logits[0, :, 7:11].double().log_softmax(-1)
    sums = [
        sum(float(rows[i, "ACGT".index(window[i])]) for i in (offset, offset + 1))
        for window in (one, two)
    ]
    assert table["masked"][0] == pytest.approx(sums[1] - sums[0], abs=1e-5)
    assert table["masked"][1] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 4_000}, "longest input is"),
        ({"horizon": 0}, "a horizon is 1 base or more"),
        ({"window": 1}, "2 bases or more"),
        ({"methods": ["guess"]}, "no method 'guess'"),
        ({"methods": ["masked"]}, "needs a model that predicts hidden bases"),
        ({"methods": ["l2", "l2"]}, "different names"),
        ({"strands": "up"}, "strands is one of"),
        ({"placement": "left"}, "placement is one of"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    store: Genome, model: torch.nn.Module, options: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        score_variants(model, ["chr1:40:A>C"], store, **options)  # pyright: ignore[reportArgumentType]


def test_absolute_scores_are_those_of_the_mean_of_both_strands(
    store: Genome, contigs: dict[str, str], model: torch.nn.Module
) -> None:
    ref = contigs["chr1"][39].upper()
    variants = [Variant("chr1", 39, ref, alt) for alt in "ACGT" if alt != ref]
    names = ("llr_window", "llr_after", "llr_site")
    methods = (*names, *(f"abs_{name}" for name in names))
    table = score_variants(model, variants, store, window=WINDOW, methods=methods).table
    for name in names:
        np.testing.assert_array_equal(table[f"abs_{name}"], table[name].abs())
        assert (METHODS_OF[name].damaging, METHODS_OF[f"abs_{name}"].damaging) == (-1, 1)
    assert METHODS_OF["l2"].damaging == METHODS_OF["cosine"].damaging == 1


def test_rank_means_are_those_of_ranks_counted_one_by_one() -> None:
    rng = np.random.default_rng(5)
    alleles = {"contig": ["c"] * 40, "pos": range(40), "ref": ["A"] * 40, "alt": ["C"] * 40}
    values = {name: rng.integers(0, 9, 40) / 4 for name in ("llr_after", "l2", "abs_llr_after")}
    one = pl.DataFrame({**alleles, **values}).with_columns(
        pl.when(pl.col("pos") != 7).then(pl.col("l2")).alias("l2")
    )
    two = pl.DataFrame({**alleles, "l2": rng.integers(0, 5, 40) / 2, "reason": [None] * 40})
    columns = [-values["llr_after"], values["l2"], values["abs_llr_after"], two["l2"].to_numpy()]
    wanted = []
    for i in range(40):
        ranks = []
        for column in columns:
            others = [column[j] for j in range(40) if j != 7]
            below = sum(x < column[i] for x in others)
            ranks.append((below + (sum(x == column[i] for x in others) + 1) / 2) / 39)
        wanted.append(None if i == 7 else np.mean(ranks))
    found = mb.rank_mean(one, two)
    assert found.columns == ["contig", "pos", "ref", "alt", "rank_mean"]
    assert found["rank_mean"][7] is None
    for i in (*range(7), *range(8, 40)):
        assert found["rank_mean"][i] == pytest.approx(wanted[i], abs=1e-12)
    assert mb.rank_mean(two, methods=["l2"])["rank_mean"].is_not_null().all()
    for tables, message in (((), "found none"), ((one, two[::-1]), "table 2 has other alleles"),
                            ((two.drop("l2"),), "table 1 has no scores of a method")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            mb.rank_mean(*tables)
    with pytest.raises(InputError, match="no scores of jsd"):
        mb.rank_mean(two, methods=["jsd"])
