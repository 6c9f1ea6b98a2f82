"""Greedy continuation with a cache against the same model run anew for every token; batches, devices, stops."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases
from golden.compare import logits_of, stack

from lingregions import generate, models
from lingregions import mesh as meshes
from lingregions import tree as trees
from lingregions.models import Compute

COMPUTE = Compute(block=16)
NAMES = ("mha", "gqa", "llama3")  # llama3: the continuation goes beyond the original context of 32
LENGTHS, COUNT = (5, 1, 33, 18), 24
T = 64  # of the naive loop: one shape


@dataclasses.dataclass(frozen=True)
class Case:
    """A tiny model and prompts of several lengths."""

    config: models.DecoderConfig
    params: trees.Tree
    prompts: list[list[int]]

    def greedy(self, prompts: Any = None, count: int = COUNT, **options: Any) -> list[list[int]]:
        return generate.greedy(
            self.config, COMPUTE, options.pop("params", self.params), prompts or self.prompts, count, **options
        )


@functools.cache
def case(name: str) -> Case:
    config = models.parse(cases.CASES[name])
    random = np.random.RandomState(9)
    prompts = [random.randint(0, config.vocab, length).tolist() for length in LENGTHS]
    return Case(config, stack(cases.weights(cases.CASES[name], 23), config), prompts)


@functools.cache
def naive(name: str) -> list[list[int]]:
    """All prompts as one batch, the whole text anew for every token."""
    this = case(name)
    tokens, segments = np.zeros((2, len(LENGTHS), T), np.int32)
    for row, prompt in enumerate(this.prompts):
        tokens[row, : len(prompt)], segments[row, : len(prompt)] = prompt, 1
    run, rows = logits_of(this.config, COMPUTE), np.arange(len(LENGTHS))
    for step in range(COUNT):
        ends = np.asarray(LENGTHS) + step
        logits = np.asarray(run(this.params, tokens, segments))[rows, ends - 1]
        best = np.sort(logits, axis=1)
        assert (best[:, -1] - best[:, -2] > 1e-4).all()  # no near tie: another order of sums may not change the text
        tokens[rows, ends], segments[rows, ends] = logits.argmax(axis=1), 1
    return [tokens[row, length : length + COUNT].tolist() for row, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("name", NAMES)
def test_the_cache_gives_what_the_whole_text_gives(name: str) -> None:
    found = case(name).greedy()
    assert found == naive(name)
    assert len({tuple(each) for each in found}) == len(LENGTHS)
    assert all(len(set(each)) > 4 for each in found)


@pytest.mark.parametrize("row", range(len(LENGTHS)))
def test_a_prompt_alone_is_continued_as_in_a_batch(row: int) -> None:
    assert case("gqa").greedy([case("gqa").prompts[row]]) == [naive("gqa")[row]]


def test_eight_devices_write_what_one_writes(mesh: jax.sharding.Mesh) -> None:
    this = case("gqa")
    placed = jax.device_put(this.params, meshes.shardings(models.declare(this.config), mesh))
    assert this.greedy(params=placed, mesh=mesh) == naive("gqa")
    # A batch that the devices do not divide.
    assert this.greedy(this.prompts[:3], params=placed, mesh=mesh) == naive("gqa")[:3]


def test_a_sample_ends_with_its_first_stop() -> None:
    whole = naive("mha")
    stop = [whole[0][3], whole[2][7]]
    ends = [next((i + 1 for i, token in enumerate(each) if token in stop), COUNT) for each in whole]
    assert len(set(ends)) > 1
    assert case("mha").greedy(stop=stop) == [each[:end] for each, end in zip(whole, ends, strict=True)]
    first = [each[0] for each in whole]
    assert case("mha").greedy(stop=[*first, stop[0]]) == [[token] for token in first]


def test_one_token_is_the_first_of_many() -> None:
    assert case("mha").greedy(count=1) == [each[:1] for each in naive("mha")]


def test_bounds_hold_in_the_prompt_and_in_every_step() -> None:
    """Where the MLPs and the attention give nothing, a token depends on the one before alone."""
    this, L = case("mha"), case("mha").config.layers
    nothing = np.zeros(L, np.float32)
    bounds = {"layers": {"mlp": {"down_proj": nothing}, "self_attn": {"o_proj": nothing}}}
    table, gain = (np.asarray(this.params[key], np.float64) for key in ("embed_tokens", "norm"))
    scaled = table / np.sqrt((table**2).mean(-1, keepdims=True) + this.config.eps) * gain
    following = (scaled @ np.asarray(this.params["lm_head"], np.float64).T).argmax(axis=1)
    expected = []
    for prompt in this.prompts:
        text = [prompt[-1]]
        for _ in range(COUNT):
            text.append(int(following[text[-1]]))
        expected.append(text[1:])
    assert this.greedy(bounds=bounds) == expected != naive("mha")
    endless = jax.tree.map(lambda bound: bound + np.float32(np.inf), bounds)
    assert this.greedy(bounds=endless) == naive("mha")


def test_the_cache_is_of_the_compute_dtype_and_has_one_slot_a_token() -> None:
    this, V = case("gqa"), case("gqa").config.vocab
    arguments = np.zeros((1, 32), np.int32), np.int32([3]), np.zeros(V, bool), None
    text = generate._write.lower(this.config, Compute(dtype="bfloat16"), 8, this.params, *arguments).as_text()
    slots = f"x{32 + 8 - 1}x{this.config.kv_heads}x{this.config.head_dim}x"
    assert f"{this.config.layers}x1{slots}bf16" in text
    assert f"{slots}f32" not in text


def test_of_equal_logits_the_lowest_id_is_written() -> None:
    this = case("mha")
    twins = this.params | {"lm_head": jnp.tile(this.params["lm_head"][:22], (2, 1))}
    assert all(token < 22 for each in this.greedy(params=twins) for token in each)


@pytest.mark.parametrize(
    ("prompts", "count", "message"),
    [
        ([], 3, "there is none to continue"),
        ([[1, 2], []], 3, "there is none to continue"),
        ([[1, 2]], 0, "count is 0 tokens; it must be at least 1"),
        ([[1, 2]], 127, "a prompt of 2 tokens and 127 more exceed the model's context of 128"),
        ([[1], [3, 44]], 3, "prompt 1 holds the token 44, and the vocabulary has 44"),
        ([[-1]], 3, "prompt 0 holds the token -1"),
    ],
)
def test_what_cannot_be_continued_is_refused(prompts: list[list[int]], count: int, message: str) -> None:
    this = case("mha")
    with pytest.raises(ValueError, match=message):
        generate.greedy(this.config, COMPUTE, this.params, prompts, count)
