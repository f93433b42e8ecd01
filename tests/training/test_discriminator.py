"""The discriminator against the same network of torch's own parts, and its files."""

import io

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import spectral_norm

from pipeline.errors import ConfigError
from pipeline.training.discriminator import load_discriminator, new_discriminator
from pipeline.training.losses import discriminator_loss


class Reference(nn.Module):
    """With torch's spectral norm, whose state changes at each pass in training mode."""

    def __init__(self, n):
        super().__init__()
        sizes = {1: (n, 2 * n, 4, 2), 2: (2 * n, 4 * n, 4, 2), 3: (4 * n, 8 * n, 4, 2)}
        sizes |= {4: (8 * n, 4 * n, 3, 1), 5: (4 * n, 2 * n, 3, 1), 6: (2 * n, n, 3, 1)}
        sizes |= {7: (n, n, 3, 1), 8: (n, n, 3, 1)}
        self.conv0 = nn.Conv2d(3, n, 3, 1, 1)
        for layer, size in sizes.items():
            self.add_module(f"conv{layer}", spectral_norm(nn.Conv2d(*size, 1, bias=False)))
        self.conv9 = nn.Conv2d(n, 1, 3, 1, 1)

    def forward(self, x):
        def layer(number, x):
            return functional.leaky_relu(getattr(self, f"conv{number}")(x), 0.2)

        def doubled(x):
            return functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

        skips = [layer(0, x)]
        for number in (1, 2, 3):
            skips.append(layer(number, skips[-1]))
        x = skips.pop()
        for number in (4, 5, 6):
            x = layer(number, doubled(x)) + skips.pop()
        return self.conv9(layer(8, layer(7, x)))


def small(seed=0, features=4):
    return new_discriminator(np.random.default_rng(seed), features=features)


def pictures(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def assert_same(network, other):
    state, wanted = network.state_dict(), other.state_dict()
    assert list(state) == list(wanted)
    for name, tensor in wanted.items():
        assert torch.equal(state[name], tensor), name


# -------------------------------------------------------------------------------------- network


def test_it_has_the_published_size_and_finite_gradients():
    network = new_discriminator(np.random.default_rng(0))
    assert sum(weight.numel() for weight in network.parameters()) == 4_376_897
    x = pictures(1, 2, 3, 24, 16).requires_grad_()
    logits = network(x)
    assert logits.shape == (2, 1, 24, 16)
    discriminator_loss(logits, real=True).backward()
    for name, weight in (*network.named_parameters(), ("x", x)):
        assert torch.isfinite(weight.grad).all(), name
        assert weight.grad.abs().max() > 0, name


def test_its_state_is_named_as_in_the_released_files():
    spectral = ("weight_orig", "weight_u", "weight_v")
    wanted = {f"conv{n}.{name}" for n in range(1, 9) for name in spectral}
    wanted |= {f"conv{n}.{name}" for n in (0, 9) for name in ("weight", "bias")}
    network = small()
    assert network.state_dict().keys() == wanted
    Reference(4).load_state_dict(network.state_dict())  # sizes and names, strictly


def test_it_computes_what_torchs_own_spectral_norm_does():
    network, reference = small(), Reference(4)
    reference.load_state_dict(network.state_dict())
    x = pictures(1, 2, 3, 32, 24)
    torch.testing.assert_close(network(x), reference.eval()(x), rtol=1e-5, atol=1e-6)
    for net in (network, reference):  # so that there is something to follow
        with torch.no_grad():
            net.conv4.weight_orig += 0.1 * pictures(2, 16, 32, 3, 3)
    network.iterate()
    wanted = reference.train()(x)
    for name, tensor in reference.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(network(x), wanted, rtol=1e-5, atol=1e-6)


def test_its_gradients_are_those_of_torchs_own_spectral_norm():
    network, reference = small(), Reference(4).eval()
    reference.load_state_dict(network.state_dict())
    x = pictures(1, 2, 3, 16, 16)
    for net in (network, reference):
        net(x).square().mean().backward()
    theirs = dict(reference.named_parameters())
    for name, weight in network.named_parameters():
        torch.testing.assert_close(weight.grad, theirs[name].grad, rtol=1e-4, atol=1e-8, msg=name)


def test_a_new_one_is_normalised_and_drawn_from_its_generator_alone():
    before = torch.get_rng_state()
    network = small(seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(small(seed=3), network)
    assert not torch.equal(small(seed=4).conv0.weight, network.conv0.weight)
    for number in range(1, 9):
        layer = getattr(network, f"conv{number}")
        greatest = torch.linalg.matrix_norm(layer.weight_orig.flatten(1), ord=2)
        estimate = layer.weight_u @ (layer.weight_orig.flatten(1) @ layer.weight_v)
        assert 0.9 * greatest < estimate < 1.0001 * greatest


@pytest.mark.parametrize("size", [(8, 8), (9, 15), (37, 22)])
def test_it_takes_pictures_of_any_size_from_8_on(size):
    logits = small()(pictures(1, 1, 3, *size))
    assert logits.shape == (1, 1, *size)
    assert torch.isfinite(logits).all()


def test_passes_leave_the_state_alone_and_lanes_add_up():
    network = small().train()
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    x = pictures(1, 6, 3, 16, 16)
    whole = network(x)
    lanes = torch.cat([network(lane) for lane in x.split(2)])
    torch.testing.assert_close(lanes, whole, rtol=1e-5, atol=1e-6)
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_state_may_follow_between_a_pass_and_its_gradient():
    network, other = small(), small()
    loss = network(pictures(1, 1, 3, 16, 16)).mean()
    other(pictures(1, 1, 3, 16, 16)).mean().backward()
    network.iterate()
    loss.backward()
    for ours, theirs in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_weights_are_normalised_in_float32_around_half_precision():
    network, other = small(), small()
    x = pictures(1, 1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network.iterate()
        half = network(x)
    other.iterate()
    assert_same(network, other)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), other(x), rtol=0.05, atol=0.02)


# ------------------------------------------------------------------------------------- training


def trained(network, steps):
    """Steps of the recipe's kind on one batch, and the loss of each: two passes, summed."""
    real = pictures(1, 2, 3, 16, 16)
    fake = functional.interpolate(real, scale_factor=0.25, mode="area")
    fake = functional.interpolate(fake, scale_factor=4, mode="bilinear")
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.9, 0.99))
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        network.iterate()
        parts = [
            discriminator_loss(network(x), real=truth) for x, truth in ((real, True), (fake, False))
        ]
        for part in parts:
            part.backward()
        optimizer.step()
        losses.append(sum(float(part.detach()) for part in parts))
    return losses


def test_it_learns_to_tell_a_sharp_picture_from_a_smooth_one():
    losses = trained(small(features=8), 25)
    assert losses[0] == pytest.approx(2 * np.log(2), abs=0.1)
    assert losses[-1] < losses[0] / 2


def test_training_goes_on_from_a_file_as_if_it_had_not_stopped():
    network = small()
    trained(network, 2)
    resumed = load_discriminator(saved(network.state_dict()))
    assert_same(resumed, network)
    assert trained(resumed, 3) == trained(network, 3)
    assert_same(resumed, network)


# ---------------------------------------------------------------------------------------- files


def renamed(state):
    """In mmagic's spelling."""
    return {name.replace("conv", "conv_"): tensor for name, tensor in state.items()}


def prefixed(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "content",
    [
        lambda state: state,
        lambda state: {"params": state},
        lambda state: {"params_ema": state},
        lambda state: {"params": prefixed("module.", state), "iter": 7},
        lambda state: renamed(state),
        lambda state: {
            "meta": {"epoch": 1},
            "state_dict": prefixed("discriminator.", renamed(state))
            | {"generator.conv_first.weight": torch.zeros(4, 3, 3, 3), "step_counter": 5},
        },
        lambda state: {
            "params_ema": {name: tensor * 2 for name, tensor in state.items()},
            "params": state,
        },
    ],
    ids=["plain", "params", "params_ema", "module", "mmagic's names", "mmagic", "both"],
)
def test_it_is_found_in_files_of_every_layout(content, tmp_path):
    network = small(seed=5)
    data = saved(content(network.state_dict()))
    assert_same(load_discriminator(data), network)
    (tmp_path / "netD.pth").write_bytes(data)
    assert_same(load_discriminator(tmp_path / "netD.pth"), network)


def test_it_is_read_from_every_format_and_becomes_float32():
    state = {name: tensor.half() for name, tensor in small().state_dict().items()}
    wanted = load_discriminator(saved(state))
    assert all(tensor.dtype == torch.float32 for tensor in wanted.state_dict().values())
    assert all(weight.requires_grad for weight in wanted.parameters())
    old = saved({"params": state}, _use_new_zipfile_serialization=False)
    assert_same(load_discriminator(old), wanted)
    assert_same(load_discriminator(safetensors.torch.save(state)), wanted)


def test_tensors_of_a_file_that_share_their_memory_are_parted():
    state = small().state_dict()
    state["conv8.weight_orig"] = state["conv7.weight_orig"]
    # Written once, claimed twice: the rest of the file has to make up for it.
    network = load_discriminator(saved({"params": state, "more": torch.zeros(1000)}))
    with torch.no_grad():
        network.conv7.weight_orig.zero_()
    assert network.conv8.weight_orig.abs().max() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv5.weight_u": None}, r"no U-Net discriminator .* in it, but conv0\.weight"),
        ({"conv0.weight": torch.zeros(4, 3, 9)}, r"conv0\.weight has shape \(4, 3, 9\)"),
        ({"conv0.weight": torch.zeros(0, 3, 3, 3)}, r"conv0\.weight has shape \(0, "),
        ({"conv0.weight": torch.zeros(5, 3, 3, 3)}, r"conv0\.bias has shape \(4,\).*\(5,\)"),
        ({"conv6.weight_v": torch.zeros(7)}, r"conv6\.weight_v has shape \(7,\)"),
        ({"conv9.bias": torch.tensor([torch.nan])}, r"conv9\.bias holds NaN or infinity"),
        ({"conv9.bias": torch.tensor([1])}, r"conv9\.bias is torch\.int64"),
    ],
)
def test_another_network_is_refused(change, message):
    state = {k: v for k, v in (small().state_dict() | change).items() if v is not None}
    with pytest.raises(ConfigError, match=f"^the discriminator: .*{message}"):
        load_discriminator(saved(state))


def test_a_file_that_claims_more_than_it_holds_is_refused():
    state = {
        name: torch.zeros(1).expand(tensor.shape) for name, tensor in small().state_dict().items()
    }
    with pytest.raises(ConfigError, match=r"its tensors claim [\d,]+ bytes, the file has"):
        load_discriminator(saved(state))


def test_what_is_no_checkpoint_is_refused_by_its_name(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.pth: No such file"):
        load_discriminator(tmp_path / "none.pth")
    (tmp_path / "x.pth").write_bytes(b"\x89PNG")
    with pytest.raises(ConfigError, match=r"x\.pth: not a checkpoint but a PNG image"):
        load_discriminator(tmp_path / "x.pth")
    with pytest.raises(ConfigError, match="in it, but nothing but list"):
        load_discriminator(saved([1, 2]))
