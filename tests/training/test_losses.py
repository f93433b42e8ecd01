"""Losses against plain torch, with a VGG19 of few channels in torchvision's own order."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional

from pipeline.errors import ConfigError
from pipeline.models.files import ModelFile
from pipeline.storage import Store
from pipeline.training.losses import VGG19, Perceptual, discriminator_loss, generator_loss, l1

STORE = Store()
# Channels of VGG19's convolutions, sixteen times fewer; "M" is a pooling.
LAYERS = (4, 4, "M", 8, 8, "M", *(16,) * 4, "M", *(32,) * 4, "M", *(32,) * 4, "M")


def vgg19(seed=0):
    """`features` of torchvision's VGG19, random: 37 layers."""
    rng = np.random.default_rng(seed)
    layers, channels = [], 3
    for width in LAYERS:
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        conv = nn.utils.skip_init(nn.Conv2d, channels, width, 3, padding=1)
        deviation = (2 / conv.weight[0].numel()) ** 0.5
        with torch.no_grad():
            conv.weight.copy_(torch.from_numpy(rng.normal(0, deviation, conv.weight.shape)))
            conv.bias.copy_(torch.from_numpy(rng.normal(0, 0.1, width)))
        layers += [conv, nn.ReLU(inplace=False)]
        channels = width
    return nn.Sequential(*layers)


def tensors_of(features):
    """As torchvision's file has them, with the first of the layers behind."""
    named = {f"features.{name}": tensor for name, tensor in features.state_dict().items()}
    return named | {"classifier.0.weight": torch.zeros(2, 2)}


def saved(tensors):
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


def pictures(seed, *shape):
    return torch.from_numpy(np.random.default_rng(seed).random(shape, dtype=np.float32))


# ----------------------------------------------------------------------------------- perceptual

WEIGHTS = {2: 0.1, 7: 0.1, 16: 1, 25: 1, 34: 1}  # conv1_2, conv2_2, conv3_4, conv4_4, conv5_4


def expected(features, x, target):
    """The recipe's sentence in torch: every layer in its order, tapped before the ReLUs."""
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1)
    deviation = torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1)
    x, target = (x - mean) / deviation, (target - mean) / deviation
    total = 0
    for index, layer in enumerate(features[:35]):
        x, target = layer(x), layer(target)
        if index in WEIGHTS:
            total = total + WEIGHTS[index] * (x - target).abs().mean()
    return total


@pytest.mark.parametrize("size", [(32, 32), (19, 45), (16, 16)])
def test_perceptual_is_the_sum_over_vgg19s_unactivated_features(size):
    features = vgg19()
    perceptual = Perceptual(tensors_of(features))
    x, target = (pictures(seed, 2, 3, *size).requires_grad_() for seed in (1, 2))
    loss = perceptual(x, target)
    wanted = expected(features, x, target.detach())
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    (found,) = torch.autograd.grad(loss, x)
    torch.testing.assert_close(found, *torch.autograd.grad(wanted, x), rtol=1e-4, atol=1e-7)
    assert torch.isfinite(found).all()
    assert found.abs().max() > 0


def test_perceptual_has_no_weights_to_train_and_gives_targets_no_gradient():
    perceptual = Perceptual(tensors_of(vgg19()))
    x, target = pictures(1, 1, 3, 16, 16), pictures(2, 1, 3, 16, 16).requires_grad_()
    assert not any(weight.requires_grad for weight in perceptual.parameters())
    assert not perceptual(x, target).requires_grad
    assert perceptual(x, x) == 0


def test_perceptual_is_float32_around_half_precision():
    perceptual = Perceptual(tensors_of(vgg19()))
    x, target = pictures(1, 1, 3, 32, 32), pictures(2, 1, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = perceptual(x, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, perceptual(x, target), rtol=0.02, atol=0)


def test_nothing_behind_conv5_4_is_built():
    sizes = [weight.shape for weight in Perceptual(tensors_of(vgg19())).parameters()]
    assert len(sizes) == 2 * 16
    widths = [width for width in LAYERS if width != "M"]
    assert [size[0] for size in sizes if len(size) == 4] == widths


@pytest.mark.parametrize("save", [saved, safetensors.torch.save], ids=["torch", "safetensors"])
def test_weights_come_from_a_file_of_ones_own(save, tmp_path):
    tensors = tensors_of(vgg19())
    (tmp_path / "vgg").write_bytes(save(tensors))
    perceptual = Perceptual.load(str(tmp_path / "vgg"), cache_dir=tmp_path, store=STORE)
    x, target = pictures(1, 1, 3, 16, 16), pictures(2, 1, 3, 16, 16)
    assert perceptual(x, target) == Perceptual(tensors)(x, target)


def test_released_weights_are_fetched_once_and_verified(tmp_path):
    data = saved(tensors_of(vgg19()))
    STORE.publish("memory://vgg/released.pth", data)
    sha256 = "0" * 64
    wrong = ModelFile(
        name="released.pth", uris=("memory://vgg/released.pth",), sha256=sha256, bytes=len(data)
    )
    with pytest.raises(ConfigError, match=f"has sha256 [0-9a-f]+, wanted is {sha256}; name a"):
        Perceptual.load(None, cache_dir=tmp_path, store=STORE, released=wrong)
    right = replace(wrong, sha256=hashlib.sha256(data).hexdigest())
    Perceptual.load(None, cache_dir=tmp_path, store=STORE, released=right)
    STORE.publish("memory://vgg/released.pth", b"gone")
    Perceptual.load(None, cache_dir=tmp_path, store=STORE, released=right)


def test_released_weights_are_looked_for_in_the_folder_of_models(tmp_path):
    (tmp_path / VGG19.name).write_bytes(b"another")
    with pytest.raises(ConfigError, match=rf"{VGG19.name} has sha256 .*, wanted is dcbb9e9d"):
        Perceptual.load(None, cache_dir=tmp_path, store=STORE, models_uri=str(tmp_path))


def test_without_weights_both_remedies_are_named(tmp_path):
    nowhere = ModelFile(name="x.pth", uris=("memory://vgg/none.pth",), sha256="0" * 64, bytes=1)
    remedies = r"\(losses\.vgg19: FILE\) or .* \(losses\.perceptual: off\)"
    with pytest.raises(ConfigError, match=f"no VGG19 .* memory://vgg/none.pth.*{remedies}"):
        Perceptual.load(None, cache_dir=tmp_path, store=STORE, released=nowhere)
    with pytest.raises(ConfigError, match=f"nothing at /none.pth.*{remedies}"):
        Perceptual.load("/none.pth", cache_dir=tmp_path, store=STORE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.34.bias": None}, r"there is no features\.34\.bias in it"),
        ({"features.5.weight": torch.zeros(8, 5, 3, 3)}, r"features\.5\.weight has .*\(8, 4, 3, 3"),
        ({"features.0.weight": torch.zeros(4, 1, 3, 3)}, r"features\.0\.weight has .*\(4, 3, 3, 3"),
        ({"features.2.bias": torch.zeros(4, 1)}, r"features\.2\.bias has .*wanted is \(4,\)"),
        ({"features.2.bias": torch.zeros(4, dtype=torch.int64)}, r"no features\.2\.bias"),
    ],
)
def test_weights_of_another_network_are_refused(change, message, tmp_path):
    tensors = {k: v for k, v in (tensors_of(vgg19()) | change).items() if v is not None}
    (tmp_path / "vgg.pth").write_bytes(saved(tensors))
    with pytest.raises(ConfigError, match=message):
        Perceptual.load(str(tmp_path / "vgg.pth"), cache_dir=tmp_path, store=STORE)


def test_a_file_without_names_is_refused(tmp_path):
    (tmp_path / "vgg.pth").write_bytes(saved([torch.zeros(1)]))
    with pytest.raises(ConfigError, match="holds no dict of tensors but list"):
        Perceptual.load(str(tmp_path / "vgg.pth"), cache_dir=tmp_path, store=STORE)


def test_the_download_is_pinned():
    (url,) = VGG19.uris
    assert url.endswith(f"-{VGG19.sha256[:8]}.pth")
    assert len(bytes.fromhex(VGG19.sha256)) == 32


# -------------------------------------------------------------------------------------- the rest


def test_l1_is_the_mean_absolute_difference():
    x, target = pictures(1, 2, 3, 5, 4), pictures(2, 2, 3, 5, 4)
    wanted = np.abs(x.numpy().astype(float) - target.numpy()).mean()
    np.testing.assert_allclose(l1(x, target), wanted, rtol=1e-6)
    half = l1(x.bfloat16(), target)
    assert half.dtype == torch.float32


@pytest.mark.parametrize("real", [True, False])
def test_gan_losses_are_cross_entropies_of_the_sigmoid(real):
    logits = pictures(1, 2, 1, 4, 4) * 8 - 4
    chance = 1 / (1 + np.exp(-logits.numpy().astype(float)))
    wanted = -np.log(chance if real else 1 - chance).mean()
    np.testing.assert_allclose(discriminator_loss(logits, real=real), wanted, rtol=1e-5)
    if real:
        assert generator_loss(logits) == discriminator_loss(logits, real=True)


def test_gan_losses_stay_finite_where_the_sigmoid_is_lost():
    logits = torch.tensor([-200.0, 200.0], requires_grad=True)
    for loss in (generator_loss(logits), discriminator_loss(logits, real=False)):
        assert float(loss.detach()) == pytest.approx(100)
        assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def test_gan_losses_are_float32_of_half_logits():
    logits = (pictures(1, 1, 1, 4, 4) * 4 - 2).bfloat16()
    wanted = functional.softplus(-logits.double()).mean()
    loss = generator_loss(logits)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-6, atol=0)
