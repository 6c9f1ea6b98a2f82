"""Neurons that are specific to a language, by the entropy of where they are active, and what of the MLPs is theirs.

Language activation probability entropy (LAPE; Tang et al. 2024, "Language-Specific Neurons", arXiv 2402.16438, section
2): p[l] is the part of a language's tokens on which a neuron's activation is above zero; divided by their sum over
languages they are a distribution, and its entropy is low where few languages share the neuron. Of the twentieth of the
neurons that is most often active in a language, those of the lowest entropy are its own (their bound is one for all
languages, and may leave one without any). A neuron's parameters are its
rows of gate and up and its column of down. Costs one forward pass of the scored text. Legend: L layers, D embed, F mlp.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lingregions import models
from lingregions import tree as trees
from lingregions.experiments.context import Context
from lingregions.models import roles
from lingregions.regions import Provenance, Region, stack

_OFTEN = 0.95  # quantile of a language's probabilities
_INPUTS = {roles.path("gate"): 2, roles.path("up"): 2, roles.path("down"): 1}  # path -> the axis that is not neurons
SCOPE = ",".join(_INPUTS)


def probabilities(context: Context) -> np.ndarray:
    """Return the part of the scored tokens on which each neuron is active: float64 [languages, L, F]."""
    model, found = context.model, []
    for language in context.settings.score.languages:
        corpus, positions = context.samples(language, "score")
        size, tokens = model.rows, 0
        active = np.zeros((model.config.layers, model.config.mlp), np.int64)
        for start in range(0, len(positions), size):
            host = corpus.batch(positions[start : start + size], size)
            batch, tokens = model.place(host), tokens + int(np.count_nonzero(host.segments))
            active += np.asarray(model.run(models.activation_counts, batch.tokens, batch.segments))
        found.append(active / tokens)
    return np.stack(found)


def _entropies(active: np.ndarray) -> np.ndarray:
    """Return the entropy over languages, nats, of probabilities [languages, ...]; ln n of a neuron that is never on."""
    total = active.sum(0)
    share = np.where(total > 0, active / np.where(total > 0, total, 1), 1 / len(active))
    found: np.ndarray = -np.sum(share * np.log(np.where(share > 0, share, 1)), axis=0)
    return found


def specific(active: np.ndarray, language: int, count: int) -> np.ndarray:
    """Return the neurons of a language, bool [L, F]: of those that are active in it often, the lowest entropies.

    Often is at the `_OFTEN` quantile of its probabilities or above it; ties go to the lower index.

    Args:
      active: float64 [languages, L, F], from `probabilities`.
      language: its place there.
      count: neurons wanted; no more than are active often.
    """
    often = active[language] >= np.quantile(active[language], _OFTEN)
    order = np.argsort(np.where(often, _entropies(active), np.inf), axis=None, kind="stable")
    chosen = np.zeros(often.size, bool)
    chosen[order[: min(count, int(often.sum()))]] = True
    return chosen.reshape(often.shape)


def twins(active: np.ndarray, chosen: np.ndarray, closed: np.ndarray) -> np.ndarray:
    """Return as many other neurons of the same layers that are active as often, bool [L, F]: a control.

    Args:
      active: float64 [L, F], probabilities in the language of the chosen.
      chosen: bool [L, F].
      closed: bool [L, F], neurons that may not be taken; the chosen may not either.
    """
    free, found = ~(chosen | closed), np.zeros_like(chosen)
    for layer, neuron in np.argwhere(chosen):
        near = np.where(free[layer], np.abs(active[layer] - active[layer, neuron]), np.inf)
        twin = int(near.argmin())
        found[layer, twin], free[layer, twin] = True, False
    return found


def region(context: Context, chosen: np.ndarray, name: str, definition: str) -> Region:
    """Return the region of all parameters of some neurons, bool [L, F]."""
    model = context.model
    known = Provenance(
        name=name,
        definition=definition,
        score_scope=SCOPE,
        model=model.fingerprint,
        tokenizer=model.tokenizer.fingerprint,
        **model.declared(SCOPE),
    )

    def mask(path: str, leaf: jax.Array) -> jax.Array:
        whole = np.broadcast_to(np.expand_dims(chosen, _INPUTS[path]), leaf.shape)
        placed: jax.Array = jax.device_put(whole, stack.sharding(leaf))
        return placed

    return Region(trees.transform(mask, roles.restrict(model.params, SCOPE)), known)


def held(found: Region) -> np.ndarray:
    """Return how many parameters of each neuron a region holds in gate, up and down: int64 [3, L, F]."""
    leaves = found.leaves()
    sums = [jnp.sum(leaves[path], axis=axis, dtype=jnp.int32) for path, axis in _INPUTS.items()]
    return np.stack([np.asarray(each, np.int64) for each in sums])
