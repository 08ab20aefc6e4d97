#!/usr/bin/env python3
"""Writes tests/fixtures/chat/expected.json: what Jinja2, set up as transformers sets it up, makes of the templates there.

    pip install jinja2
    python tests/interop/render_chat.py [other folder of templates]
"""
import datetime
import json
import sys
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        next(parser.stream)
        return parser.parse_statements(["name:endgeneration"], drop_needle=True)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
env.filters["tojson"] = tojson
env.globals["raise_exception"] = raise_exception
env.globals["strftime_now"] = lambda f: datetime.datetime.now(datetime.timezone.utc).strftime(f)

conversations = [
    [("user", "Hi")],
    [("system", " Be brief. "), ("user", " What is 2 < 3? \n"), ("assistant", " Yes: \"true\" "), ("user", "naïve 日本 🚀 one two three four")],
    [("user", "a"), ("assistant", "b")],
    [("user", "a"), ("user", "b")],
    [("tool", "x"), ("user", "y")],
]
folder = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent / "fixtures" / "chat")
cases = []
for path in sorted(folder.glob("*.jinja")):
    for conversation in conversations:
        messages = [{"role": role, "content": content} for role, content in conversation]
        for prompt in (False, True):
            case = {"template": path.name, "messages": messages, "add_generation_prompt": prompt}
            try:
                template = env.from_string(path.read_text(encoding="utf-8"))
                case["text"] = template.render(
                    messages=messages, tools=None, documents=None, add_generation_prompt=prompt,
                    bos_token="<s>", eos_token="</s>",
                )
            except Exception as e:
                case["error"] = str(e)
            cases.append(case)
(folder / "expected.json").write_text(json.dumps(cases, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
print(f"{len(cases)} cases, {sum('error' in c for c in cases)} of them errors")
