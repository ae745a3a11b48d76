"""An HTML page with every output of a run, for a person to look at."""

import html
import os
from urllib.parse import quote

from ..files import write_text
from .outputs import Output
from .records import RunFolder

STYLE = """
body { font: 14px system-ui, sans-serif; margin: 16px; background: #fff; color: #222 }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 12px }
figure { margin: 0; break-inside: avoid }
img { width: 100%; height: auto; display: block; background: #eee }
figcaption { padding: 4px 0; overflow-wrap: anywhere }
small { color: #666 }
"""


def write_contact_sheet(folder: RunFolder, outputs: list[Output]):
    """Writes OUT.run/contact_sheet.html; what is missing is shown as missing. Returns its path."""
    path = folder.run / "contact_sheet.html"
    figures = "\n".join(_figure(folder, output) for output in outputs)
    title = html.escape(folder.out.name)
    write_text(
        path,
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>\n'
        f"<h1>{title}</h1><p>{len(outputs)} outputs</p>\n<main>\n{figures}\n</main></html>\n",
        folder.temporary,
    )
    return path


def _figure(folder: RunFolder, output: Output) -> str:
    file = folder.file(output.path)
    label = f"{html.escape(output.prompt)}<br><small>{html.escape(output.path)}</small>"
    if not os.path.lexists(file):
        return f"<figure><figcaption>(missing) {label}</figcaption></figure>"
    if output.task == "describe":
        answer = html.escape(file.read_text(encoding="utf-8", errors="replace"))
        return f"<figure><figcaption>{label}<p>{answer}</p></figcaption></figure>"
    link = quote(f"../{folder.out.name}/{output.path}")
    image = f'<a href="{link}"><img src="{link}" loading="lazy" alt=""></a>'
    return f"<figure>{image}<figcaption>{label}</figcaption></figure>"
