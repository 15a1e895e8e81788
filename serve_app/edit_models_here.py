"""The trackers and editors of one edit, loaded in this process: for the library, where there is no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from configs.load import load_cards
from configs.model_card import ModelCard
from configs.settings import Settings
from serve_app.director import calls_at_once
from workflows.edit import EditRequest
from workflows.edit_hands import hands_of, with_card_defaults
from workflows.edit_plan import CLASSICAL, Hand
from workflows.ports import ArtifactStore, ProgressSink

if TYPE_CHECKING:
    from serve_app.models.edit_replica import EditReplica


class ModelsHere:
    """What an edit needs beside the CPU's worker."""

    def __init__(self, request: EditRequest, settings: Settings) -> None:
        """Check the request's cards; `extra` says where their models lie. Loads nothing.

        Raises InvalidDocument for what they cannot do, SettingsError for cards that cannot be read.
        """
        cards = load_cards(settings, request.extra)
        self._settings = settings
        self.request = with_card_defaults(request, cards)
        self.tracker, self.editor = hands_of(self.request, cards)
        self._cards: Mapping[str, ModelCard] = {
            hand.card: cards[hand.card] for hand in (self.tracker, self.editor) if hand.card != CLASSICAL.card}

    @property
    def hands(self) -> tuple[Hand, Hand]:
        """Tracker and editor."""
        return self.tracker, self.editor

    @property
    def lanes(self) -> dict[str, int]:
        """Calls in flight per card."""
        return {name: calls_at_once(card) for name, card in self._cards.items()}

    @contextmanager
    def opened(self, store: ArtifactStore, sink: ProgressSink, say: Callable[[str], None],
               ) -> Iterator[Mapping[str, EditReplica]]:
        """The cards' models, loaded and warm, by card; their memory is given back at the end.

        `say` hears what is being loaded. Raises InvalidDocument for weights that are not here.
        """
        with ExitStack() as stack:
            found: dict[str, EditReplica] = {}
            for name, card in self._cards.items():
                import torch  # seconds, for nothing where no card is asked

                from serve_app.models.edit_replica import EditReplica

                say(f"loading {name}")
                found[name] = EditReplica(card, self._settings.models, store, sink, float(torch.cuda.is_available()))
                stack.callback(found[name].close)
            yield found
