"""Checkpoints of a training, which go on bit for bit, and its exports, which other programs read.

    <output>/checkpoints/latest.json     which slots hold whole ones, the last first
    <output>/checkpoints/<slot>/         networks.safetensors and a pools-<rank>.safetensors each
    <output>/model.safetensors           the averaged generator, for `jobs/upscale.py`
    <output>/model.pth                   the same under the official keys

Files are published one by one, each whole or not at all, and `latest.json` last: whatever a
checkpoint was interrupted in, the ones before it stand. Slots are written in turn, so nothing needs
to be deleted.
"""

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import yaml
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pipeline import local, uris
from pipeline.errors import ConfigError, FatalError, PipelineError
from pipeline.models import layouts
from pipeline.storage import Store
from pipeline.training.config import TrainConfig
from pipeline.training.trainer import Trainer

_PICTURES = ("images", "root", "pairs")  # their place may change, and there may be more of them
# What may change from one run of a training to the next.
_FREE = {"iterations", "adam.rate", "adam.milestones", "adam.gamma", "export", *_PICTURES}
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # of Adam


class Checkpoints:
    """Of one training, at one place."""

    def __init__(self, store: Store, output: str, *, keep: int) -> None:
        self.store, self.output, self._keep = store, output, keep
        self._root = uris.join(output, "checkpoints")
        self._config_uri = uris.join(output, "config.yaml")

    @classmethod
    def of(cls, config: TrainConfig) -> "Checkpoints":
        """Those at the configured output. Local files are staged in one folder below it."""
        output = uris.absolute(config.output)
        staging = uris.join(output, local.STAGING) if uris.is_local(output) else None
        store = Store(config.storage.output.fsspec_options(), staging=staging)
        return cls(store, output, keep=config.keep)

    def changes(self, config: TrainConfig) -> list[str]:
        """What is asked for otherwise than before, of what may change.

        Raises ConfigError where the output has another training.
        """
        if self.latest() is None:
            return []
        earlier = TrainConfig.load(None, yaml.safe_load(self.store.read(self._config_uri)))
        asked, before = _settings(config), _settings(earlier)
        changed = {
            name: f"{name}: {before.get(name)} before, {asked.get(name)} now"
            for name in sorted(asked.keys() | before.keys())
            if asked.get(name) != before.get(name)
        }
        refused = [text for name, text in changed.items() if name not in _FREE]
        if refused:
            raise ConfigError(
                f"{self.output} has a training with other settings: {'; '.join(refused)}. "
                "Keep them, or give another output (and start from its model.safetensors)"
            )
        return list(changed.values())

    def note(self, config: TrainConfig) -> None:
        """Keeps what the training is, for those that go on with it."""
        data = config.to_yaml().encode()
        self.store.publish(self._config_uri, data, content_type="application/yaml")

    def latest(self) -> dict[str, Any] | None:
        """What is known of the last one: step, slot and files with their sha256."""
        whole = self._whole()
        return whole[0] if whole else None

    def _whole(self) -> list[dict[str, Any]]:
        """What is known of those that are kept, the last first."""
        try:
            known = json.loads(self.store.read(uris.join(self._root, "latest.json")))
        except FileNotFoundError:
            return []
        return known if isinstance(known, list) else [known]  # an earlier form: the last one alone

    def _keep_whole(self, whole: Sequence[Mapping[str, Any]]) -> None:
        uri = uris.join(self._root, "latest.json")
        self.store.publish(uri, json.dumps(whole, indent=1).encode())

    def save_part(self, trainer: Trainer) -> dict[str, str]:
        """One worker's part of a checkpoint: the sha256 of what it published, by name."""
        place, slot = trainer.place, self._slot()
        files = {f"pools-{place.rank}.safetensors": save_tensors(pools(trainer))}
        if place.rank == 0:
            files["networks.safetensors"] = save_tensors(networks(trainer))
        for name, data in files.items():
            self.store.publish(uris.join(self._root, f"{slot}/{name}"), data)
        return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}

    def complete(self, step: int, files: Mapping[str, str]) -> None:
        """All workers have published their parts: from now on this is the last checkpoint."""
        facts = {"step": step, "slot": self._slot(), "files": dict(files)}
        others = [known for known in self._whole() if known["slot"] != facts["slot"]]
        self._keep_whole([facts, *others][: self._keep])

    def restore(self, trainer: Trainer) -> list[str]:
        """Brings a trainer to where the last checkpoint was, if there is one.

        Returns why others had to be passed over: a file that is missing, or not what was saved.
        Raises FatalError when that is so of all of them.
        """
        whole, passed = self._whole(), list[str]()
        for index, facts in enumerate(whole):
            try:
                files = {name: self._read(facts, name) for name in facts["files"]}
            except _DamagedError as error:
                passed.append(f"the checkpoint of step {facts['step']} is passed over: {error}")
                continue
            if passed and trainer.place.rank == 0:
                self._keep_whole(whole[index:])  # else the next is written over this one
            _restore(trainer, facts["step"], files)
            return passed
        if passed:
            raise FatalError(f"no checkpoint can be gone on from: {'; '.join(passed)}")
        return passed

    def _slot(self) -> int:
        """Where the next one goes: a free slot, else that of the oldest."""
        taken = [facts["slot"] for facts in self._whole()]
        free = [slot for slot in range(self._keep) if slot not in taken]
        return free[0] if free else taken[-1]

    def _read(self, facts: Mapping[str, Any], name: str) -> dict[str, Tensor]:
        uri = uris.join(self._root, f"{facts['slot']}/{name}")
        try:
            data = self.store.read(uri)
        except OSError as error:
            raise _DamagedError(f"{uri} cannot be read: {error}") from error
        found, saved = hashlib.sha256(data).hexdigest(), facts["files"][name]
        if found != saved:
            raise _DamagedError(f"{uri} is not what was saved: sha256 {found}, not {saved}")
        return load_tensors(data)


class _DamagedError(PipelineError):
    """A file of a checkpoint cannot be used."""


def _settings(config: TrainConfig) -> dict[str, Any]:
    """What makes a training what it is, by dotted names, as it may be shown."""
    shown = yaml.safe_load(config.to_yaml())  # without credentials
    made = {name: shown[name] for name in _PICTURES} | {"paired": config.pairs is not None}
    return dict(_leaves(yaml.safe_load(config.recipe()) | made, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def export(trainer: Trainer, facts: Mapping[str, str]) -> dict[str, bytes]:
    """The averaged generator as files, by name; `model.pth` has the last weights besides.

    facts: what else the safetensors' metadata shall say, such as licence and recipe.
    """
    weights, now = (_on_host(_state(net)) for net in (trainer.averaged, trainer.generator))
    half = trainer.config.export == "fp16"
    stored = {name: tensor.half() if half else tensor for name, tensor in weights.items()}
    official = io.BytesIO()
    torch.save({"params": now, "params_ema": weights}, official)
    metadata = {**layouts.to_metadata(trainer.averaged.shape), **facts, "step": str(trainer.step)}
    return {
        "model.safetensors": save_tensors(stored, metadata),
        "model.pth": official.getvalue(),
    }


def networks(trainer: Trainer) -> dict[str, Tensor]:
    """Weights and moments, the same in all workers, by unique names; on the CPU."""
    tensors = _prefixed("generator.", _state(trainer.generator))
    tensors |= _prefixed("averaged.", _state(trainer.averaged))
    tensors |= _prefixed("adam.", _moments(trainer.adam, trainer.generator))
    if trainer.critics is not None:
        discriminator = trainer.critics.discriminator
        tensors |= _prefixed("discriminator.", _state(discriminator))
        tensors |= _prefixed("adam_d.", _moments(trainer.adam_d, discriminator))
    return _on_host(tensors)


def _restore(trainer: Trainer, step: int, files: Mapping[str, Mapping[str, Tensor]]) -> None:
    """files: the tensors of each file of a checkpoint."""
    _restore_networks(trainer, files["networks.safetensors"])
    held = dict[str, Tensor]()
    for name, tensors in files.items():
        if name.startswith("pools-"):  # lanes are shared out anew: workers may have changed
            held |= tensors
    for lane, pool in trainer.pools.items():
        pairs = {
            name: tensor.to(trainer.place.device)
            for name, tensor in _below(held, f"{lane}.").items()
        }
        pool.load_state_dict({"fill": len(pairs["targets"]) if pairs else 0, **pairs})
    trainer.step = step


def _restore_networks(trainer: Trainer, tensors: Mapping[str, Tensor]) -> None:
    trainer.generator.load_state_dict(_below(tensors, "generator."))
    trainer.averaged.load_state_dict(_below(tensors, "averaged."))
    _restore_moments(trainer.adam, trainer.generator, _below(tensors, "adam."))
    if trainer.critics is not None:
        discriminator = trainer.critics.discriminator
        discriminator.load_state_dict(_below(tensors, "discriminator."))
        _restore_moments(trainer.adam_d, discriminator, _below(tensors, "adam_d."))


def pools(trainer: Trainer) -> dict[str, Tensor]:
    """The pairs that the trainer's lanes hold, by lane; on the CPU."""
    tensors = dict[str, Tensor]()
    for lane, pool in trainer.pools.items():
        held = {name: value for name, value in pool.state_dict().items() if name != "fill"}
        tensors |= _prefixed(f"{lane}.", held)
    return _on_host(tensors)


def _moments(adam: torch.optim.Adam, network: nn.Module) -> dict[str, Tensor]:
    """Adam's state by the parameters' names: their order may change, their names do not."""
    return {
        f"{moment}.{name}": adam.state[parameter][moment]
        for name, parameter in network.named_parameters()
        for moment in _MOMENTS
        if parameter in adam.state
    }


@torch.no_grad()
def _restore_moments(
    adam: torch.optim.Adam, network: nn.Module, tensors: Mapping[str, Tensor]
) -> None:
    for name, parameter in network.named_parameters():
        if f"step.{name}" in tensors:
            adam.state[parameter] = {
                "step": tensors[f"step.{name}"].clone(),
                # Laid out as the parameter, which channels_last is not the order of files.
                **{
                    moment: torch.empty_like(parameter).copy_(tensors[f"{moment}.{name}"])
                    for moment in _MOMENTS[1:]
                },
            }


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


def _on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
