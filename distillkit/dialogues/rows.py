"""What makes a row of data a conversation to learn from.

Ours is ``{"messages": [{"role": …, "content": …}, …], …}`` with the roles system, user, assistant
and tool. ShareGPT's ``conversations`` of ``from`` and ``value`` become it by name: human → user,
gpt and chatgpt → assistant, observation → tool. A tool call's arguments may be an object or, as in
OpenAI's interface, JSON in a string. Nulls, which tables put where nothing was, are left out.
"""

import json
from typing import Any

Row = dict[str, Any]

_ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "observation": "tool",
}


def check_row(value: Any) -> tuple[Row | None, str]:
    """The row in our form, or None and the reason why it is refused."""
    try:
        return _checked(value)
    except RecursionError:
        return None, "nested too deeply"


def _checked(value: Any) -> tuple[Row | None, str]:
    row = {"messages": value} if isinstance(value, list) else value
    if not isinstance(row, dict):
        return None, f"expected an object with 'messages', found {kind_of(value)}"
    key = next((key for key in ("messages", "conversations") if row.get(key) is not None), None)
    if key is None:
        names = ", ".join(str(name)[:40] for name in list(row)[:5]) or "nothing"
        return None, f"no 'messages' (found {names})"
    raw = _transposed(row[key])
    if not isinstance(raw, list):
        return None, f"'{key}' is {kind_of(raw)}, expected a list"
    messages = [_normal(message) for message in raw]
    for number, message in enumerate(messages, 1):
        if reason := _fault(message):
            return None, f"message {number}: {reason}"
    roles = {message["role"] for message in messages}
    for role in ("user", "assistant"):
        if role not in roles:
            return None, f"no {role} turn"
    return {**{k: v for k, v in row.items() if k != key}, "messages": messages}, ""


def _transposed(messages: Any) -> Any:
    """Older data sets store a list of messages as one dict of lists."""
    if not isinstance(messages, dict):
        return messages
    columns = list(messages.values())
    lengths = {len(column) if isinstance(column, list) else None for column in columns}
    if len(lengths) != 1 or None in lengths:
        return messages
    return [dict(zip(messages, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _normal(message: Any) -> Any:
    """A message with our names, and without the nulls that tables put where nothing was."""
    if not isinstance(message, dict):
        return message
    message = {key: value for key, value in message.items() if value is not None}
    if "role" not in message and "from" in message:
        message["role"] = message.pop("from")
    if "content" not in message and "value" in message:
        message["content"] = message.pop("value")
    role = message.get("role")
    if isinstance(role, str):
        message["role"] = _SHAREGPT_ROLES.get(role, role)
    calls = message.pop("tool_calls", None)
    if calls:
        message["tool_calls"] = [_normal_call(call) for call in calls] if _is_list(calls) else calls
        message.setdefault("content", "")
    return message


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _normal_call(call: Any) -> Any:
    call = _without_nulls(call)
    if not isinstance(call, dict):
        return call
    function = call.get("function", {k: v for k, v in call.items() if k in ("name", "arguments")})
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):  # the form of OpenAI's interface: JSON inside a string
        try:
            parsed = json.loads(arguments)
        except (ValueError, RecursionError):
            parsed = None
        arguments = _without_nulls(parsed) if isinstance(parsed, dict) else arguments
    named = {k: v for k, v in call.items() if k not in ("name", "arguments", "type")}
    return {"type": "function", **named, "function": {**function, "arguments": arguments}}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _fault(message: Any) -> str | None:
    """Why a message cannot be learned from, or None."""
    if not isinstance(message, dict):
        return f"expected an object with 'role' and 'content', found {kind_of(message)}"
    if "role" not in message:
        return "no role"
    role, content = message["role"], message.get("content")
    if role not in _ROLES:
        return f"unknown role {repr(role)[:40]} (expected system, user, assistant or tool)"
    if content is None:
        return f"{role} without content"
    if not isinstance(content, str):
        return f"content is {kind_of(content)}, expected a string"
    if not content.strip() and not message.get("tool_calls"):
        return f"empty {role} content"
    try:
        json.dumps(message, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeEncodeError:
        return "half a Unicode character (a lone surrogate)"
    return _call_fault(role, message["tool_calls"]) if "tool_calls" in message else None


def _call_fault(role: str, calls: Any) -> str | None:
    if role != "assistant":
        return f"{role} with tool_calls: only the assistant calls"
    if not isinstance(calls, list):
        return f"tool_calls is {kind_of(calls)}, expected a list"
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            return "a tool call without a function's name"
        if not isinstance(function["arguments"], dict | str):
            return (
                f"a tool call's arguments are {kind_of(function['arguments'])}, expected an object"
            )
    return None


def kind_of(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a truth value",
        bytes: "bytes",
    }
    return "null" if value is None else names.get(type(value), "a number")
