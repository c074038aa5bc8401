"""Pages that are one HTML file and need no network: a template with figures, styles and scripts in it."""

import base64
import dataclasses
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from counterpoint._optional import require
from counterpoint.bench.figures import Section

TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, sections: Sequence[Section], **content: Any) -> str:
    """Return a page as HTML.

    Args:
        template: File in the folder of templates.
        sections: Sections with figures.
        **content: What else the template reads.

    Raises:
        MissingExtraError: If plotly or jinja2 is not installed.
    """
    jinja2 = require("jinja2", extra="bench")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["together"] = together
    scripts = {
        "plotly": inline_script(require("plotly.offline", extra="bench").get_plotlyjs()),
        "page": inline_script((TEMPLATES / "report.js").read_text(encoding="utf-8")),
    }
    return environment.get_template(template).render(
        sections=sections,
        payload={"figures": [dataclasses.asdict(figure) for section in sections for figure in section.figures]},
        css=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        scripts=scripts,
        hashes=[hash_source(text) for text in scripts.values()],
        **content,
    )


def together(text: str) -> str:
    """Return a text in which no line ends between a number and its per cent sign, or after a sign of comparison."""
    return re.sub(r"(?<=\d) (?=%)|(?<=[<\u2265\u00b1]) (?=-?\d)", "\u00a0", text)


def inline_script(script: str) -> str:
    """Return a script as it may stand in a page: nothing in it ends the element, line ends as a parser sees them."""
    return script.replace("\r\n", "\n").replace("\r", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def hash_source(script: str) -> str:
    """Return the source expression that lets a content security policy run this very script and no other."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
