# SPDX-License-Identifier: Apache-2.0
"""FavorAttention and MultiheadAttention as modules, and the stacks."""

import pytest
import torch
from torch import nn

import performer


def test_projection_survives_every_way_of_moving_a_module():
    module = performer.FavorAttention(2, 8, 16, seed=5, layer=3)
    drawn = performer.FeatureMap(features=16).draw(2, 8, seed=5, layer=3)
    assert torch.equal(module.projection, drawn)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert torch.equal(module.to(dtype).projection, drawn)
    empty = performer.FavorAttention(2, 8, 16, seed=5, layer=3, device="meta").to_empty(device="cpu")
    empty.reset_projection()
    assert torch.equal(empty.projection, drawn)
    other = performer.FavorAttention(2, 8, 16)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.projection.float(), drawn)
    module.redraw(1)
    assert not torch.equal(module.projection, drawn)


def test_causal_moments_move_between_steps_only():
    module = performer.FavorAttention(2, 8, performer.FeatureMap("oprf", features=16), causal=True)
    x = torch.randn(3, 2, 7, 8)
    first = module(x, x, x)
    assert torch.equal(module(x, x, x), first)
    module.after_step()
    assert not torch.equal(module(x, x, x), first)
    module.eval()
    module(2 * x, 2 * x, 2 * x)
    before = module.key_moment.clone()
    module.after_step()
    assert torch.equal(module.key_moment, before)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("sizes", [{}, {"kdim": 6, "vdim": 10}])
def test_multihead_attention_is_torchs_with_estimated_weights(batch_first, sizes):
    theirs = nn.MultiheadAttention(16, 4, batch_first=batch_first, **sizes).eval()
    ours = performer.MultiheadAttention(16, 4, batch_first=batch_first, features=8192, **sizes).eval()
    result = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert result.missing_keys == ["favor.projection"]
    assert not result.unexpected_keys
    query = 0.5 * torch.randn(2, 5, 16)
    if sizes:
        key, value = 0.5 * torch.randn(2, 7, 6), torch.randn(2, 7, 10)
    else:
        key = value = torch.randn(2, 7, 16)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 4:] = True
    if not batch_first:
        query, key, value = (x.transpose(0, 1) for x in (query, key, value))
    expected, _ = theirs(query, key, value, key_padding_mask=padding, need_weights=False)
    out, none = ours(query, key, value, key_padding_mask=padding)
    assert none is None
    assert ((out - expected).norm() / expected.norm()) < 0.05


def test_multihead_attention_with_more_keys_and_without_a_batch():
    for options in ({"add_bias_kv": True}, {"add_zero_attn": True}, {"bias": False}):
        theirs = nn.MultiheadAttention(16, 4, batch_first=True, **options).eval()
        ours = performer.MultiheadAttention(16, 4, batch_first=True, features=8192, **options).eval()
        ours.load_state_dict(theirs.state_dict(), strict=False)
        x = torch.randn(5, 16)
        expected, _ = theirs(x, x, x, need_weights=False)
        assert ((ours(x, x, x)[0] - expected).norm() / expected.norm()) < 0.05


def test_inside_an_encoder_layer_of_torch():
    """The fast path of nn.TransformerEncoderLayer would compute exact attention past forward()."""
    layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True).eval()
    x = torch.randn(2, 6, 16)
    with torch.no_grad():
        exact = layer(x)
        layer.self_attn = performer.MultiheadAttention(16, 4, batch_first=True, features="relu").eval()
        assert not torch.allclose(layer(x), exact)
        own = layer.norm1(x + layer.self_attn(x, x, x)[0])
        expected = layer.norm2(own + layer.linear2(torch.relu(layer.linear1(own))))
        torch.testing.assert_close(layer(x), expected)


def test_multihead_attention_refuses_by_name():
    module = performer.MultiheadAttention(16, 4, batch_first=True)
    x = torch.randn(2, 5, 16)
    with pytest.raises(ValueError, match="need_weights"):
        module(x, x, x, need_weights=True)
    with pytest.raises(ValueError, match="attn_mask"):
        module(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match="key_padding_mask must be bool"):
        module(x, x, x, key_padding_mask=torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"dropout is 0\.1"):
        performer.MultiheadAttention(16, 4, dropout=0.1)


def test_encoder_and_decoder():
    encoder = performer.PerformerEncoder(2, 16, 2, features=32).eval()
    decoder = performer.PerformerDecoder(2, 16, 2, features=32, cross_attend=True).eval()
    source, target = torch.randn(2, 7, 16), torch.randn(2, 5, 16)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 4:] = False
    encoded = encoder(source, key_mask=mask)
    alone = encoder(source[1:, :4])
    torch.testing.assert_close(encoded[1:, :4], alone, atol=1e-5, rtol=1e-5)
    out = decoder(target, encoded, context_mask=mask)
    torch.testing.assert_close(decoder(target[:, :3], encoded, context_mask=mask), out[:, :3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(decoder(target[1:], alone), out[1:], atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="needs a context"):
        decoder(target)
    packed = encoder(torch.cat([source[:1], alone], 1), cu_seqlens=torch.tensor([0, 7, 11]))
    torch.testing.assert_close(packed[:, :7], encoder(source[:1]), atol=1e-5, rtol=1e-5)
    encoded.sum().backward()
