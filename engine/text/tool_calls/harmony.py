"""GPT-OSS: a message in the channel `commentary` for each call.

<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris"}<|call|>
"""

from engine.text.answer_reader import Waiting
from engine.text.harmony import CALL, CALL_OPENING, CONSTRAIN, MARKERS, MAX_HEADER_CHARS, MESSAGE
from engine.text.tool_calls.parser import CallSyntax, NotACall, ToolCallParser


class HarmonyParser(ToolCallParser):
    """Reads such messages anywhere in the text. A call without its closing marker counts, too."""

    markers = MARKERS
    syntax = CallSyntax(
        begin=f"{CALL_OPENING}{{name}} {CONSTRAIN}json{MESSAGE}", end=CALL, trigger=CALL_OPENING
    )

    def _calls(self) -> Waiting[None]:
        while (yield from self._plain_text(CALL_OPENING)):
            try:
                name = yield from self._name()
                yield from self._skip_space()
                yield from self._json_arguments(name, CALL)
                yield from self._pass_space()
                yield from self._skip(CALL)
            except NotACall:
                self._say_held()

    def _name(self) -> Waiting[str]:
        """Read the rest of the message's header, which begins with the function's name."""
        header = ""
        while not (yield from self._skip_held(MESSAGE)):
            part = self._part_before(MESSAGE)
            self._hold(part)
            header += part
            if len(header) > MAX_HEADER_CHARS or (self._is_whole and not part):
                raise NotACall
        words = header.partition("<")[0].split()
        if not words:
            raise NotACall
        return words[0]
