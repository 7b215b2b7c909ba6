"""Written sequences are what one would write by hand with full forward passes."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from megabase.errors import InputError
from megabase.evaluate.log_probs import token_log_probs
from megabase.genome.alphabet import encode
from megabase.inference.generation.generate import (
    GenerateOptions,
    Prompt,
    _SequenceGenerator,
    generate,
)
from megabase.models.caduceus import CaduceusConfig, CaduceusForMaskedLM
from megabase.models.hyenadna import HyenaDNAConfig, HyenaDNAForCausalLM
from megabase.models.loading import load

ID = {"A": 7, "C": 8, "G": 9, "T": 10}


@pytest.fixture(scope="module")
def model() -> HyenaDNAForCausalLM:
    torch.manual_seed(0)
    config = HyenaDNAConfig(d_model=8, n_layer=2, max_seq_len=200, filter_order=8)
    made = HyenaDNAForCausalLM(config).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(6)
    return made


def by_hand(
    model: HyenaDNAForCausalLM, prompt: str, length: int, temperature: float, seed: int, number: int
) -> str:
    """One full forward pass for every base."""
    stream = np.random.default_rng([seed, number])
    text = prompt
    model.eval()
    for _ in range(length):
        weights = np.full(4, 0.25)
        if text:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[ID[x] for x in text]])).logits
            weights = (logits[0, -1, 7:11] / temperature).softmax(-1).numpy()
        u = stream.random()
        text += "ACGT"[int((weights.cumsum() <= u).sum())]
    return text[len(prompt) :]


def test_every_base_is_drawn_from_the_full_pass(model: HyenaDNAForCausalLM) -> None:
    prompts = ["", "ACGTTGCA", "A", "TTTT", "ACGTTGCC"]
    options = GenerateOptions(60, 2, temperature=0.8, seed=4)
    found = generate(model, prompts, options)
    assert [one.number for one in found] == list(range(10))
    for one in found:
        assert one.prompt == prompts[one.number // 2]
        assert one.sequence == by_hand(model, one.prompt, 60, 0.8, 4, one.number)
        assert one.stopped == "length"
    assert len({one.sequence for one in found}) == 10


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_batch_makes_no_difference(model: HyenaDNAForCausalLM, batch_size: int) -> None:
    prompts = ["AC", "GT", "A", "TT", "GG"]
    wanted = generate(model, prompts, GenerateOptions(90))
    found = generate(model, prompts, GenerateOptions(90, batch_size=batch_size))
    assert [one.sequence for one in found] == [one.sequence for one in wanted]


def test_the_log_probability_is_that_of_the_written_bases(model: HyenaDNAForCausalLM) -> None:
    options = GenerateOptions(30, temperature=2.0, top_k=3)
    for one in generate(model, ["ACCA", ""], options):
        ids = torch.tensor([[ID[x] for x in one.prompt + one.sequence]])
        wanted = token_log_probs(model, ids)[0, len(one.prompt) :].nansum()
        if not one.prompt:
            wanted -= math.log(4)
        assert one.log_prob == pytest.approx(float(wanted), abs=1e-9)


def test_a_motif_ends_a_sequence_and_no_other(model: HyenaDNAForCausalLM) -> None:
    free = generate(model, ["AC"] * 6, GenerateOptions(60))
    options = GenerateOptions(60, stop=("TNAC", "GGCA"), batch_size=4)
    found = generate(model, ["AC"] * 6, options)
    kinds = set()
    for one, whole in zip(found, free, strict=True):
        hits = [
            (match.end(1), motif)
            for motif in ("TNAC", "GGCA")
            for match in re.finditer(f"(?=({motif.replace('N', '.')}))", whole.sequence)
        ]
        end, why = min(hits, default=(60, "length"))
        assert (one.sequence, one.stopped) == (whole.sequence[:end], why)
        ids = torch.tensor([[ID[x] for x in "AC" + one.sequence]])
        wanted = token_log_probs(model, ids)[0, 2:].sum()
        assert one.log_prob == pytest.approx(float(wanted), abs=1e-9)
        kinds.add(why)
    assert len(kinds) > 1


def test_allowed_letters(model: HyenaDNAForCausalLM) -> None:
    (one,) = generate(model, ["ACGT"], GenerateOptions(60, letters="GN", seed=2))
    assert set(one.sequence) == {"G", "N"}


def test_results_come_as_prompts_are_read(model: HyenaDNAForCausalLM) -> None:
    read = []

    def prompts() -> "object":
        for i in range(100):
            read.append(i)
            yield Prompt(encode("ACGT"[: i % 3]), str(i))

    options = GenerateOptions(length=2, batch_size=2)
    generator = _SequenceGenerator(load(model, head="language"), options)
    chunks = options.chunks(prompts())  # pyright: ignore
    stream = (one for chunk in chunks for one in generator.generate(chunk))
    assert next(stream).name == "0"
    assert len(read) == 16
    assert [one.name for one in stream] == [str(i) for i in range(1, 100)]


def test_progress_counts_every_base(model: HyenaDNAForCausalLM) -> None:
    counted: list[int] = []
    options = GenerateOptions(70)
    generator = _SequenceGenerator(load(model, head="language"), options)
    generator.progress = counted.append
    for chunk in options.chunks(["A", "AC", "C"]):
        generator.generate(chunk)
    assert sum(counted) == 210


def test_the_mode_of_the_model_is_restored(model: HyenaDNAForCausalLM) -> None:
    model.train()
    generate(model, options=GenerateOptions(3))
    assert model.training
    model.eval()


def test_what_does_not_fit_is_refused(model: HyenaDNAForCausalLM) -> None:
    with pytest.raises(InputError, match="prompt 'x' has 101 bases and 100 are to be"):
        generate(model, [Prompt(encode("A" * 101), "x")], GenerateOptions(100))
    with pytest.raises(InputError, match="1 or more"):
        GenerateOptions(length=0)
    with pytest.raises(InputError, match="IUPAC"):
        generate(model, options=GenerateOptions(stop=("AX",)))
    masked = CaduceusForMaskedLM(CaduceusConfig(d_model=16, n_layer=1))
    with pytest.raises(InputError, match="fills masked bases"):
        generate(masked)


def test_only_endings_of_fasta_are_written(tmp_path: Path) -> None:
    from megabase.errors import OutputError
    from megabase.inference.generation.generate import generate_file

    with pytest.raises(OutputError, match=r"x\.csv: the ending says the format; expected one of"):
        generate_file(None, tmp_path / "x.csv")
