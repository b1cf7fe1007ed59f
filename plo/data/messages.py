"""Read lists of messages in any known notation into one: [{"role": ..., "content": ...}, ...]."""

import ast
import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from plo.data.errors import UNREADABLE, BadRow, DataError

Message = dict[str, str]  # {"role": ..., "content": ...}

ROLES = {  # ShareGPT's names of speakers: roles of chat templates
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
}
# Messages that Python, numpy or JSON wrote as text, as in the cells of a CSV file.
_START = re.compile(r"\s*(?:(?:array\(\s*)?\[\s*\{\s*['\"]\w+|\{\s*['\"](?:role|content|from|value))['\"]\s*:")
_ROLE = re.compile(rf"(['\"])(?:role|from)\1\s*:\s*(['\"])(?:{'|'.join(ROLES)}|tool|function)\2")
# numpy writes no comma between dictionaries; quoted strings are skipped
_STRING_OR_GAP = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|(?P<gap>\}\s*(?=\{))", re.DOTALL)


def are_messages_as_text(value: Any) -> bool:
    """Return whether `value` is a text that looks like a list of messages, such as "[{'role': 'user', ..."."""
    return isinstance(value, str) and bool(_START.match(value)) and bool(_ROLE.search(value))


def parse(text: str) -> Any:
    """Parse a value that JSON, Python's `repr` or numpy's `str` wrote, without executing anything.

    Raises:
        ValueError: `text` is none of these.

    Example:
        >>> parse("[{'role': 'user', 'content': 'a'}\\n {'role': 'assistant', 'content': 'b'}]")[1]["content"]
        'b'
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    with_commas = _STRING_OR_GAP.sub(lambda match: "}, " if match["gap"] else match[0], text.strip())
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):  # about invalid escapes
            tree = ast.parse(with_commas, mode="eval")
            return ast.literal_eval(_Arrays().visit(tree))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError("neither JSON nor a Python literal") from error


class _Arrays(ast.NodeTransformer):
    """Replace numpy's `array([...], dtype=object)` by its list."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        is_array = isinstance(node.func, ast.Name) and node.func.id == "array" and len(node.args) == 1
        return node.args[0] if is_array else node


def read_messages(value: Any, name: str, where: str) -> list[Message]:
    """Read a list of messages, or one message, in any known notation.

    A message is {"role", "content"} or ShareGPT's {"from", "value"}; its content is text or a list of text parts,
    which are joined. The whole list may also be a string.

    Args:
        name: column that is named in errors.
        where: place of the row that is named in errors.

    Raises:
        DataError: the value is not a list of messages, or has tool calls or parts that are not text.
        BadRow: the value is a text that cannot be parsed.
    """
    if isinstance(value, str):
        try:
            value = parse(value)
        except ValueError:
            raise BadRow(UNREADABLE) from None
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        raise DataError(
            f"{where}: {name!r} is {type(value).__name__} {str(value)[:40]!r}. Give text, or a list of messages."
        )
    return [_message(message, name, where) for message in value]


def _message(message: Any, name: str, where: str) -> Message:
    if isinstance(message, Mapping):
        role, content = message.get("role"), _content(message.get("content"))
        if "from" in message and "role" not in message:
            role, content = ROLES.get(str(message["from"]).lower()), _content(message.get("value"))
        if isinstance(role, str) and isinstance(content, str) and not message.get("tool_calls"):
            return {"role": role, "content": content}
    raise DataError(
        f'{where}: {name!r} has the message {str(message)[:80]!r}. Every message is {{"role": text, "content": text}} '
        'or {"from": "human", "gpt" or "system", "value": text}, without tool calls or parts of other kinds.'
    )


def _content(content: Any) -> Any:
    """Join a list of text parts; return anything else unchanged."""
    if isinstance(content, list):
        parts = [part if isinstance(part, Mapping) else {} for part in content]
        if all(part.get("type") == "text" and isinstance(part.get("text"), str) for part in parts):
            return "".join(part["text"] for part in parts)
    return content
