"""How a result gets to its place: by a look at what is there, and on condition of it.

An object says whose result it is by three labels, so three cases can be told apart: the very
result, published by an attempt that did not live to say so; an older result of ours, which is
replaced; and somebody else's object, which is not. Where a store has lost the labels, an object is
an older result of ours if it has the bytes that the report says of its place, and else somebody
else's. Local disks keep no labels: there a result replaces whatever is at its place, whole and at
once.
"""

import hashlib

from pipeline.errors import ConfigError, PublishError
from pipeline.images.encode import CONTENT_TYPES
from pipeline.records import Item
from pipeline.storage import Labels, Store
from pipeline.store_errors import ConflictError, said
from pipeline.uris import redact

_ITEM, _RECIPE, _SOURCE = "remaster-item", "remaster-recipe", "remaster-source"


class Delivery:
    """Publishes the results of one recipe. May be used from many threads at once."""

    def __init__(self, store: Store, recipe: str) -> None:
        self._store = store
        self._recipe = recipe

    def there(self, item: Item) -> Labels | None:
        """What is at the result's place, as far as can be known: nothing, or a result of ours.

        Raises PublishError for somebody else's object.
        """
        try:
            there = self._store.labels(item.output_uri)
        except (OSError, ConfigError) as error:  # no name that the store could have
            raise PublishError("publish_failed", said(error)) from error
        if there and _ITEM not in there.metadata:
            self._check_reported(item, there)
        return there

    def _check_reported(self, item: Item, there: Labels) -> None:
        """Raises PublishError unless an object without labels is the result that the report has."""
        knows = "the report knows no result there"
        if item.made_sha256:
            try:
                found = self._store.read(item.output_uri, version=there.version)
            except OSError as error:
                raise PublishError("publish_failed", said(error)) from error
            sha256 = hashlib.sha256(found).hexdigest()
            if sha256 == item.made_sha256:
                return
            knows = f"its sha256 is {sha256}, the report has {item.made_sha256} there"
        raise PublishError(
            "output_exists",
            f"{redact(item.output_uri)} (version {there.version}) is no result of ours: it has no "
            f"label {_ITEM}, and {knows}: move it away, or choose another place (output)",
        )

    def is_made(self, item: Item, source_sha256: str, there: Labels | None) -> bool:
        """Whether it is the very result: the same item by the same recipe.

        source_sha256: of what was fetched now. Where the manifest says neither version nor size an
        item is the same when its source is another.
        """
        wanted = self._labels(item, source_sha256)
        return there is not None and wanted.items() <= there.metadata.items()

    def read_back(self, item: Item) -> bytes:
        """The result that is there. Raises PublishError."""
        try:
            return self._store.read(item.output_uri)
        except OSError as error:
            raise PublishError("publish_failed", said(error)) from error

    def publish(
        self, item: Item, source_sha256: str, file: bytes, there: Labels | None
    ) -> tuple[bytes, tuple[str, ...]]:
        """Puts the result in place of what was there; raises PublishError.

        What is there then, and warnings: where another attempt of the same item was faster, its
        result stays.
        """
        try:
            self._store.publish(
                item.output_uri,
                file,
                content_type=CONTENT_TYPES[item.output_format],
                metadata=self._labels(item, source_sha256),
                replaces=there.version if there else None,
            )
        except ConflictError as error:
            if not self.is_made(item, source_sha256, self.there(item)):
                raise PublishError("output_changed", said(error)) from error
            return self.read_back(item), ("adopted",)
        except PermissionError as error:
            raise PublishError("publish_denied", said(error)) from error
        except OSError as error:
            raise PublishError("publish_failed", said(error)) from error
        return file, ()

    def _labels(self, item: Item, source_sha256: str) -> dict[str, str]:
        return {_ITEM: item.item_id, _RECIPE: self._recipe, _SOURCE: source_sha256}
