"""Chats: the template that renders the prompt of the training, and the messages that it takes.

The template is saved with a checkpoint (`chat_template.jinja`), so that a server that renders and tokenises by itself
sends the same prompt as [`SamAudioLanguageProcessor`]. A turn is what a row of the training is:

    [<|audio|>...]### Instruction:\\n{question}\\n\\n### Response:\\n{answer}<|endoftext|>

The end of a question includes the beginning of its answer, as the model never read one without the other: so a
conversation that ends with a question is the whole prompt, with or without `add_generation_prompt`, and is the
beginning of the same conversation with the answer. The next turn follows the end of text, which is where the model
ends an answer, and begins as a row of the training does. A system message stands in front of the first instruction,
behind the clips of its turn and followed by an empty line. Clips before or after all texts of a turn precede its
instruction; if a clip is between two texts, it and those after it stay where they are, as `<|audio|>` in a text does.

Each row of the training is one turn without a system message: a checkpoint answers later turns only as well as its
own training taught it to.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any

AUDIO_TOKEN = "<|audio|>"
PROMPT_TEMPLATE = "### Instruction:\n{prompt}\n\n### Response:\n"
HEADINGS = ("### Instruction:", "### Response:")

ROLES = ("system", "user", "assistant")
# Types of an item and the keys that it may have beside `type`.
ITEM_KEYS = {
    "text": ("text",),
    "audio": ("audio", "path", "url", "sampling_rate"),
    "input_audio": ("input_audio",),
    "audio_url": ("audio_url",),
}
# Formats of `input_audio`, and the containers that they name.
FORMATS = {
    "wav": ("wav",),
    "mp3": ("mp3",),
    "flac": ("flac",),
    "ogg": ("ogg",),
    "oga": ("ogg",),
    "opus": ("ogg", "webm"),
    "m4a": ("mp4",),
    "mp4": ("mp4",),
    "aac": ("aac", "mp4"),
    "webm": ("webm",),
    "aiff": ("aiff",),
}

# Only what all interpreters of chat templates know: of a string's methods, lstrip, startswith, strip, split, replace.
# vLLM passes items, rather than one string, to templates with a loop over the `content` of a loop over `messages`.
CHAT_TEMPLATE = r"""
{%- set mark = '<|audio|>' -%}
{%- set end = eos_token | default('<|endoftext|>', true) -%}
{%- set roles = ['system', 'user', 'assistant'] -%}
{%- set one_of = ', expected one of ' -%}
{%- set known = {
  'text': ['text'],
  'audio': ['audio', 'path', 'url', 'sampling_rate'],
  'input_audio': ['input_audio'],
  'audio_url': ['audio_url']
} -%}
{%- macro checked(text, place) -%}
  {%- if text is not string -%}
    {{- raise_exception(place ~ ': got a text that is no string, expected a string.') -}}
  {%- elif end in text -%}
    {{- raise_exception(place ~ ': got ' ~ end ~ ' within a text, expected none: it ends an answer.') -}}
  {%- endif -%}
  {{- text -}}
{%- endmacro -%}
{%- macro read(message, place) -%}
  {%- set content = message['content'] -%}
  {%- if content is not defined or content is none -%}
    {{- raise_exception(place ~ ": got no content, expected 'content'.") -}}
  {%- elif content is string -%}
    {{- checked(content, place) -}}
  {%- elif content is mapping or content is not iterable -%}
    {{- raise_exception(place ~ ': got content that is neither a string nor a list of items.') -}}
  {%- elif not content -%}
    {{- raise_exception(place ~ ': got an empty list as content, expected a string or items.') -}}
  {%- else -%}
    {#- `pending` are the clips since the last text, of which it is not known yet whether another text follows -#}
    {%- set turn = namespace(text='', pending='', has_text=false, between=false) -%}
    {%- for item in message['content'] -%}
      {%- set spot = place ~ ', item ' ~ loop.index0 -%}
      {%- if item is not mapping -%}
        {{- raise_exception(spot ~ ": got an item that is no dictionary, expected one with the key 'type'.") -}}
      {%- elif item['type'] is not defined or item['type'] is none -%}
        {{- raise_exception(spot ~ ': got no type' ~ one_of ~ known | join(', ') ~ '.') -}}
      {%- elif item['type'] is not string or item['type'] not in known -%}
        {{- raise_exception(spot ~ ': got the type ' ~ item['type'] ~ one_of ~ known | join(', ') ~ '.') -}}
      {%- endif -%}
      {%- for key in item -%}
        {%- if item[key] is not none and key != 'type' and key not in known[item['type']] -%}
          {{- raise_exception(spot ~ ': got the unknown key ' ~ key ~ ' in an item of the type ' ~ item['type']
                              ~ ', expected ' ~ known[item['type']] | join(', ') ~ '.') -}}
        {%- endif -%}
      {%- endfor -%}
      {%- if item['type'] == 'text' -%}
        {%- set text = checked(item['text'], spot) -%}
        {%- if text.strip() -%}
          {%- set turn.between = turn.between or (turn.has_text and turn.pending.strip() != '') -%}
          {%- set turn.has_text = true -%}
          {%- set turn.text = turn.text ~ turn.pending ~ text -%}
          {%- set turn.pending = '' -%}
        {%- else -%}
          {%- set turn.pending = turn.pending ~ text -%}
        {%- endif -%}
      {%- elif message['role'] != 'user' -%}
        {{- raise_exception(spot ~ ': got audio in a message of the role ' ~ message['role'] ~ ', expected text.') -}}
      {%- else -%}
        {%- set turn.pending = turn.pending ~ mark -%}
      {%- endif -%}
    {%- endfor -%}
    {%- if turn.between or not turn.has_text -%}
      {{- turn.text ~ turn.pending -}}
    {%- else -%}
      {{- turn.pending.split() | join('') ~ turn.text ~ turn.pending.replace(mark, '') -}}
    {%- endif -%}
  {%- endif -%}
{%- endmacro -%}
{%- if tools or documents -%}
  {{- raise_exception('tools, documents: SAM reads neither; put what it shall know into the question.') -}}
{%- elif not messages -%}
  {{- raise_exception('messages: got none, expected a message of the role user.') -}}
{%- endif -%}
{%- set chat = namespace(system='', last='') -%}
{%- for message in messages -%}
  {%- set place = 'message ' ~ loop.index0 -%}
  {%- if message is not mapping -%}
    {{- raise_exception(place ~ ": got no dictionary, expected one with 'role' and 'content'.") -}}
  {%- elif message['role'] is not defined or message['role'] not in roles -%}
    {{- raise_exception(place ~ ': got the role ' ~ message['role'] ~ one_of ~ roles | join(', ') ~ '.') -}}
  {%- endif -%}
  {%- for key in message -%}
    {%- if message[key] is not none and key != 'role' and key != 'content' -%}
      {{- raise_exception(place ~ ': got the unknown key ' ~ key ~ ', expected role and content.') -}}
    {%- endif -%}
  {%- endfor -%}
  {%- set role = message['role'] -%}
  {%- if (role == 'system' and not loop.first) or (role == 'user' and chat.last == 'user')
      or (role == 'assistant' and chat.last != 'user') -%}
    {{- raise_exception(place ~ ': got the role ' ~ role ~ ' after ' ~ (chat.last or 'nothing')
                        ~ ', expected at most one system message, then user and assistant in turn.') -}}
  {%- endif -%}
  {%- set chat.last = role -%}
  {%- set content = read(message, place) -%}
  {%- if role != 'user' and mark in content -%}
    {{- raise_exception(place ~ ': got ' ~ mark ~ ' in a message of the role ' ~ role ~ ', expected text.') -}}
  {%- elif role == 'system' -%}
    {%- set chat.system = content.strip() ~ '\n\n' if content.strip() else '' -%}
  {%- elif role == 'assistant' -%}
    {% generation %}{{ content ~ end }}{% endgeneration %}
  {%- else -%}
    {%- set turn = namespace(marks='', text=content) -%}
    {%- for part in content.split(mark) -%}
      {%- if turn.text.lstrip().startswith(mark) -%}
        {%- set turn.marks = turn.marks ~ mark -%}
        {%- set turn.text = turn.text.lstrip()[mark | length:] -%}
      {%- endif -%}
    {%- endfor -%}
    {%- set turn.text = turn.text.lstrip() if turn.marks else turn.text -%}
    {{- turn.marks ~ chat.system -}}
    {%- set chat.system = '' -%}
    {%- if turn.text.startswith('### Instruction:\n') and '\n\n### Response:\n' in turn.text -%}
      {{- turn.text -}}
    {%- else -%}
      {{- '### Instruction:\n' ~ turn.text ~ '\n\n### Response:\n' -}}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if chat.last == 'system' -%}
  {{- raise_exception('messages: got a system message alone, expected a message of the role user after it.') -}}
{%- elif add_generation_prompt and chat.last == 'assistant' -%}
  {{- raise_exception('add_generation_prompt: got a conversation that ends with an answer, expected a question at its'
                      ~ ' end; to continue the answer, use continue_final_message.') -}}
{%- endif -%}
""".strip()


def is_rendered(text: str, name: str = "text") -> bool:
    """Whether a text is a rendered prompt, which is not rendered again.

    It is one if, after the marks of its clips, it begins with `### Instruction:\\n` and later has
    `\\n\\n### Response:\\n`; or, with a system message in front, if `\\n\\n### Instruction:\\n` is within it and it
    ends with `\\n\\n### Response:\\n`. Other texts are questions, also those that mention one of the headings.

    Args:
        text (`str`): A text that the processor was given.
        name (`str`, *optional*, defaults to `"text"`): What the text is called in the error.

    Raises:
        ValueError: Both headings are there, but not as in the template, so that it may be either.
    """
    instruction, response = HEADINGS
    if instruction not in text or response not in text:
        return False
    text = re.sub(rf"^(\s*{re.escape(AUDIO_TOKEN)})+\s*", "", text)
    if re.match(rf"{instruction}\n.*?\n\n{response}\n", text, re.DOTALL):
        return True
    system = re.search(rf"\n\n{instruction}\n.*\n\n{response}\n", text, re.DOTALL)
    if system and text.endswith(f"\n\n{response}\n"):
        return True
    if system or re.match(rf"\s*{instruction}.*{response}", text, re.DOTALL):
        raise ValueError(
            f"{name}: got {_short(text)}, which has the headings of a rendered prompt but is none: expected "
            f"{PROMPT_TEMPLATE!r} with each of its newlines, or the question alone; pass rendered=True to tokenise "
            "the text as it is, or rendered=False if it is a question."
        )
    return False


def read_chat(
    messages: Any, name: str, load: Callable[..., Any] | None = None, sampling_rate: int | None = None
) -> list[dict[str, Any]]:
    """The checked messages of a chat as the template and transformers take them.

    Args:
        messages (`list[dict]`): Messages with a `role` (`"system"`, `"user"`, `"assistant"`) and `content`, a string
            or a list of items with a `type`:

            - `{"type": "text", "text": ...}`;
            - `{"type": "audio"}` with the clip as `"audio"`, `"path"` or `"url"`, anything that `load` reads, and for
              arrays `"sampling_rate"`;
            - `{"type": "input_audio", "input_audio": {"data": ..., "format": ...}}`: base64 and a key of [`FORMATS`];
            - `{"type": "audio_url", "audio_url": {"url": ...}}`, or the URL alone: `data:audio/...;base64,...` or a
              path.

            Keys whose value is `None` count as missing.
        name (`str`): What the messages are called in errors.
        load (function, *optional*): Reads a clip, given its source and rate, as [`load_audio`] does. Without it an
            item of audio may lack its source.
        sampling_rate (`int`, *optional*): Rate in Hz of arrays whose item has none.

    Returns:
        `list[dict]`: New messages, whose clips are `{"type": "audio"}` and with `load` have the waveform as `"audio"`.

    Raises:
        ValueError: An unknown role, type or key, a missing one, content that is no string or list of items, wrong
            base64, a URL that had to be downloaded; also by `load`.
    """
    if not isinstance(messages, (list, tuple)) or not messages:
        raise ValueError(f"{name}: got {_short(messages)}, expected a list of messages.")
    found: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        place = f"{name}: message {number}"
        message = _checked_keys(message, ("role", "content"), place)
        if message.get("role") not in ROLES:
            raise ValueError(f"{place}: got the role {message.get('role')!r}, expected one of {', '.join(ROLES)}.")
        content = message.get("content")
        if isinstance(content, (list, tuple)) and content:
            items = enumerate(content)
            content = [_read_item(item, f"{place}, item {index}", load, sampling_rate) for index, item in items]
        elif not isinstance(content, str):
            raise ValueError(f"{place}: got {_short(content)} as content, expected a string or a list of items.")
        found.append({"role": message["role"], "content": content})
    return found


def _read_item(item: Any, place: str, load: Callable[..., Any] | None, sampling_rate: int | None) -> dict[str, Any]:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if not isinstance(kind, str) or kind not in ITEM_KEYS:
        got = "no type" if isinstance(item, Mapping) and kind is None else f"the type {kind!r}"
        if not isinstance(item, Mapping):
            got = _short(item)
        types = ", ".join(map(repr, ITEM_KEYS))
        raise ValueError(f"{place}: got {got}, expected an item of one of the types {types}.")
    item = _checked_keys(item, ("type", *ITEM_KEYS[kind]), f"{place} ({kind})")
    place = f"{place} ({kind})"
    if kind == "text":
        if not isinstance(item.get("text"), str):
            raise ValueError(f"{place}: got {_short(item.get('text'))} as 'text', expected a string.")
        return item
    sources = [key for key in ITEM_KEYS[kind] if key in item and key != "sampling_rate"]
    if len(sources) > 1:
        raise ValueError(f"{place}: got {' and '.join(map(repr, sources))}, expected one of them.")
    if load is None:
        return {"type": "audio"}
    if not sources:
        raise ValueError(f"{place}: got the keys {sorted(item)}, expected {ITEM_KEYS[kind][0]!r} with the clip.")
    source = item[sources[0]]
    if kind == "input_audio":
        source = _decoded_input(source, place)
    elif kind == "audio_url":
        url = source.get("url") if isinstance(source, Mapping) and set(source) == {"url"} else source
        if not isinstance(url, str):
            raise ValueError(f"{place}: got {_short(source)} as 'audio_url', expected a string or {{'url': ...}}.")
        source = url
    try:
        return {"type": "audio", "audio": load(source, item.get("sampling_rate", sampling_rate))}
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _decoded_input(value: Any, place: str) -> bytes:
    """The file in the value of `input_audio`."""
    value = _checked_keys(value, ("data", "format"), f"{place}, 'input_audio'")
    missing = [key for key in ("data", "format") if not isinstance(value.get(key), str)]
    if missing:
        raise ValueError(
            f"{place}: got {_short(value.get(missing[0]))} as {missing[0]!r} of 'input_audio', expected a string: "
            "'data' in base64, and its 'format'."
        )
    containers = FORMATS.get(value["format"].lower())
    if containers is None:
        raise ValueError(f"{place}: got the format {value['format']!r}, expected one of {', '.join(FORMATS)}.")
    data = _decoded(value["data"], place)
    found = _container(data)
    if found not in containers:
        raise ValueError(
            f"{place}: got the format {value['format']!r}, but the data are {found or 'of no known format'}; name the "
            "format that they have."
        )
    return data


def _decoded(text: str, place: str) -> bytes:
    """The bytes of base64, which may have line breaks."""
    try:
        data = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(
            f"{place}: got audio that is not base64 ({error}), expected a whole file in base64."
        ) from error
    if not data:
        raise ValueError(f"{place}: got no data, expected a file in base64.")
    return data


def _container(data: bytes) -> str | None:
    """The name of a file's container by its first bytes."""
    if data[:4] in (b"RIFF", b"RF64", b"RIFX") and data[8:12] == b"WAVE":
        return "wav"
    if data[:4] == b"FORM" and data[8:11] == b"AIF":
        return "aiff"
    if data[4:8] == b"ftyp":
        return "mp4"
    for begin, name in ((b"fLaC", "flac"), (b"OggS", "ogg"), (b"\x1a\x45\xdf\xa3", "webm"), (b"ID3", "mp3")):
        if data.startswith(begin):
            return name
    if data[:1] == b"\xff" and len(data) > 1 and data[1] & 0xE0 == 0xE0:
        return "aac" if data[1] & 0xF6 == 0xF0 else "mp3"  # ADTS has no layer
    return None


def _checked_keys(value: Any, keys: tuple[str, ...], place: str) -> dict[str, Any]:
    """A dictionary without the keys whose value is `None`."""
    if not isinstance(value, Mapping):
        raise ValueError(f"{place}: got {_short(value)}, expected a dictionary with the keys {', '.join(keys)}.")
    found = {key: item for key, item in value.items() if item is not None}
    unknown = [key for key in found if key not in keys]
    if unknown:
        raise ValueError(
            f"{place}: got the unknown {'key' if len(unknown) == 1 else 'keys'} {', '.join(map(repr, unknown))}, "
            f"expected {', '.join(map(repr, keys))}."
        )
    return found


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, (str, int, float, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= 80 else text[:77] + "..."
