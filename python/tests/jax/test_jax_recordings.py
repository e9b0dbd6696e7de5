# SPDX-License-Identifier: Apache-2.0
"""reference=True against what google-research's fast_attention gave."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recordings import Case, cases

from performer.jax import _reference, attention, factories

TYPES = pytest.mark.parametrize("double", [False, True], ids=["float32", "float64"])


def of(group: str, **only):
    found = [case for case in cases(group) if all(case.options.get(k) == v for k, v in only.items())]
    return pytest.mark.parametrize("case", found, ids=str)


def attention_of(case: Case, projection):
    """The attention function with the options of the case, the original's names."""
    o = case.options
    common = {
        "qkv_dim": o["d"],
        "renormalize_attention": o.get("renormalize", True),
        "numerical_stabilizer": o["stabilizer"],
        "unidirectional": o["unidirectional"],
        "lax_scan_unroll": o.get("unroll", 1),
        "projection": projection,
        "reference": True,
    }
    if o["m"]:
        common["nb_features"] = o["m"]
    if o["family"] == "softmax":
        return factories.make_fast_softmax_attention(
            nonnegative_features=o["nonnegative"], ortho_scaling=o.get("ortho_scaling", 0), **common
        )
    name = {"shiftedelu": "elu+1"}.get(o["kernel_fn"], o["kernel_fn"])
    return factories.make_fast_generalized_attention(
        kernel_fn=name,
        kernel_epsilon=o["kernel_epsilon"],
        features_type="ortho" if o["m"] else "deterministic",
        **common,
    )


GROUPS = ("jax_attention_softmax", "jax_attention_generalized", "jax_attention_trig")


@pytest.mark.parametrize("case", list(itertools.chain(*(cases(g) for g in GROUPS))), ids=str)
@TYPES
def test_attention_and_gradients(case, double):
    with jax.enable_x64(double):
        dtype = jnp.float64 if double else jnp.float32
        q, k, v, ct = (jnp.asarray(case.tensor(n), dtype) for n in ("q", "k", "v", "ct"))
        w = case.tensor("W") if case.has("W") else None
        fn = attention_of(case, w)
        axis = case.options.get("axis")

        @jax.jit
        def both(*arguments):
            w_given = None if w is None else jnp.asarray(w, dtype)
            out, pull = jax.vjp(lambda q, k, v: fn(q, k, v, axis=axis, projection=w_given), *arguments)
            return out, pull(ct)

        out, gradients = both(q, k, v)
        case.check("out", out)
        for name, gradient in zip(("dq", "dk", "dv"), gradients, strict=True):
            if name in case.outputs:
                case.check(name, gradient)


@of("jax_features")
@TYPES
def test_features(case, double):
    o = case.options
    with jax.enable_x64(double):
        dtype = jnp.float64 if double else jnp.float32
        x, ct = (jnp.asarray(case.tensor(n), dtype) for n in ("x", "ct"))
        w = jnp.asarray(case.tensor("W"), dtype) if case.has("W") else None
        d = x.shape[-1]

        def features(x):
            axes = o.get("attn_axes", 1)
            flat = x.reshape(-1, int(np.prod(x.shape[-1 - axes : -1])), d)
            if o["kind"] in ("positive", "sincos"):
                # The functions have the scale of the factory, normalize_data=True, built in.
                flat = flat if o["normalize_data"] else flat * d**0.25
                if o["kind"] == "positive":
                    phi = _reference.positive_features(flat, w, o["is_query"], o["eps"])
                else:
                    phi = _reference.trigonometric_features(flat, w)
            else:
                flat = flat * d**-0.25 if o["normalize_data"] else flat
                name = {"shiftedelu": "elu+1"}.get(o["kernel_fn"], o["kernel_fn"])
                phi = _reference.generalized_features(flat, w, attention._reference_function(name), o["kernel_epsilon"])
            return phi.reshape(*x.shape[:-1], -1)

        @jax.jit
        def both(x):
            phi, pull = jax.vjp(features, x)
            return phi, pull(ct)[0]

        phi, gradient = both(x)
        case.check("features", phi)
        case.check("dx", gradient)


@of("jax_projection")
def test_projection(case):
    o = case.options
    if o.get("redraw_features"):
        q, k, v = (jnp.asarray(case.tensor(n)) for n in ("q", "k", "v"))
        assert int(_reference.redraw_seed(q)) == case.tensor("seed")
        options = _reference.ProjectionOptions(o["m"], o["d"])
        case.check("W_drawn", _reference.draw_of_seed(options, _reference.redraw_seed(q)))
        fn = factories.make_fast_softmax_attention(o["d"], nb_features=o["m"], reference=True)
        case.check("out", fn(q, k, v))
        return
    options = _reference.ProjectionOptions(o["m"], o["d"], o["type"] == "ortho", o.get("scaling", 0))
    case.check("W", _reference.draw(options, jax.random.PRNGKey(o["seed"])))


@of("jax_module")
def test_attention_within_the_module(case):
    """The original's module multiplies values by its mask; keys that it masks stay in the denominator."""
    o = case.options
    t = {name: jnp.asarray(case.tensor(name)) for name in case.entry["inputs"]}
    fn = factories.make_fast_softmax_attention(
        o["d_head"], nb_features=o["m"], unidirectional=o["unidirectional"], projection=t["W"], reference=True
    )

    @jax.jit
    def module(t):
        def dense(x, name):
            return jnp.einsum("ble,ehd->blhd", x, t[f"{name}_kernel"]) + t[f"{name}_bias"]

        value = dense(t["inputs_kv"], "value")
        if o["mask"]:
            value = value * t["mask_k"][..., None, None]
        out = fn(dense(t["inputs_q"], "query"), dense(t["inputs_kv"], "key"), value)
        return jnp.einsum("blhd,hde->ble", out, t["out_kernel"]) + t["out_bias"]

    case.check("out", module(t))
