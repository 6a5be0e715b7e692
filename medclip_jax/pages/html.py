"""Build one HTML file that needs nothing else: styles and images inline, no script, no link outwards."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from medclip_jax.evaluation.results import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Page:
    """A page under construction: sections in order, each filled by the calls that follow it.

    Every text is escaped; what a report says cannot become markup.

    Args:
        title: heading and title of the window.
        subtitle: one line below it.
    """

    def __init__(self, title: str, subtitle: str = ""):
        self.title = title
        self.subtitle = subtitle
        self._tiles: list[tuple[str, str]] = []
        self._sections: list[tuple[str, str]] = []
        self._parts: list[str] = []

    def tile(self, value: str, label: str) -> None:
        """A large number in the strip at the top.

        Args:
            value: the number, formatted, with its unit.
            label: what it is.
        """
        self._tiles.append((value, label))

    def section(self, title: str, lead: str = "") -> None:
        """Begin a section; what is added from now on belongs to it.

        Args:
            title: heading, and entry of the list of contents.
            lead: what the reader sees here, in a sentence or two.
        """
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        taken = {name for name, _ in self._sections}
        anchor = next(
            name for name in (anchor, *(f"{anchor}-{i}" for i in range(2, 1000))) if name not in taken
        )
        self._sections.append((anchor, title))
        self._parts.append(f'</section>\n<section id="{anchor}">\n<h2>{html.escape(title)}</h2>')
        if lead:
            self._parts.append(f'<p class="lead">{html.escape(lead)}</p>')

    def heading(self, text: str) -> None:
        """A heading inside the section."""
        self._parts.append(f"<h3>{html.escape(text)}</h3>")

    def paragraph(self, text: str, *, note: bool = False) -> None:
        """A paragraph.

        Args:
            text: plain text.
            note: mark it as something to mind.
        """
        kind = ' class="note"' if note else ""
        self._parts.append(f"<p{kind}>{html.escape(text)}</p>")

    def code(self, text: str) -> None:
        """A block of commands or JSON, as it is."""
        self._parts.append(f"<pre>{html.escape(text)}</pre>")

    def table(self, table: Table) -> None:
        """A table with its title, unless the section has the same, and its conditions."""
        if not self._sections or self._sections[-1][1] != table.title:
            self.heading(table.title)
        self.rows(table.header, table.rows)
        self.pairs(table.conditions)

    def rows(
        self,
        header: Sequence[str],
        rows: Iterable[Sequence[str]],
        *,
        prose: bool = False,
        marked: Mapping[tuple[int, int], str] | None = None,
    ) -> None:
        """A table without title.

        Args:
            header: column names.
            rows: cells, formatted; long texts are wrapped, all else is aligned right but the first column.
            prose: the cells are words and no numbers: wrapped and aligned left, whatever their length.
            marked: (row, column) to "best" or "near", which are set off.
        """
        in_words = ' class="text"'
        marked = marked or {}

        def cell(text: str, place: tuple[int, int]) -> str:
            if prose:
                return f"<td{in_words}>{html.escape(text)}</td>"
            kind = in_words if len(text) > 40 else f' class="{marked[place]}"' if place in marked else ""
            value, bracket, interval = text.partition(" [")
            if bracket and interval.endswith("]"):
                return f"<td{kind}>{html.escape(value)}<br><small>[{html.escape(interval)}</small></td>"
            return f"<td{kind}>{html.escape(text)}</td>"

        head = "".join(f"<th{in_words if prose else ''}>{html.escape(name)}</th>" for name in header)
        body = "".join(
            f"<tr>{''.join(cell(text, (i, j)) for j, text in enumerate(row))}</tr>\n"
            for i, row in enumerate(rows)
        )
        self._parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def pairs(self, values: Mapping[str, str]) -> None:
        """Names and values, small: the conditions of a table, a configuration."""
        entries = "".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in values.items()
        )
        self._parts.append(f'<dl class="conditions">{entries}</dl>')

    def words(self, label: str, words: Iterable[tuple[str, str, str]]) -> None:
        """A text in which some words are marked.

        Args:
            label: line above it.
            words: (word with what follows it, kind, note): kind "right" or "wrong" marks the word, "" does
                not; a note stands behind it in small letters.
        """

        def piece(text: str, kind: str, note: str) -> str:
            word, behind = html.escape(text.rstrip()), html.escape(text[len(text.rstrip()) :])
            marked = f'<mark class="{kind}">{word}</mark>' if kind else word
            return marked + (f"<small>{html.escape(note)}</small>" if note else "") + behind

        text = "".join(piece(*word) for word in words)
        self._parts.append(f'<div class="words"><b>{html.escape(label)}</b><p>{text}</p></div>')

    def figure(self, figure: Figure | bytes, description: str, caption: str = "", *, dpi: int = 110) -> None:
        """A picture.

        Args:
            figure: a matplotlib figure, or the bytes of a PNG, GIF or SVG file.
            description: what it shows, for those who cannot see it.
            caption: below it.
            dpi: of a matplotlib figure.
        """
        data = figure if isinstance(figure, bytes) else to_png(figure, dpi=dpi)
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        self._parts.append(
            f'<figure><img src="{data_uri(data)}" alt="{html.escape(description)}">{below}</figure>'
        )

    def hits(
        self,
        query: str,
        hits: Sequence[tuple[bytes, str, str, bool]],
        *,
        label: str = "",
        picture: bytes | None = None,
        wide: bool = False,
    ) -> None:
        """A query with the pictures found for it, matches marked.

        Args:
            query: text of the query.
            hits: (picture, line in bold, text below it, whether it is a match), best first.
            label: line above the query.
            picture: of the query.
            wide: whether cards are wide, for texts of several sentences.
        """
        above = f"<h3>{html.escape(label)}</h3>" if label else ""
        shown = f'<img src="{data_uri(picture)}" alt="query">' if picture is not None else ""
        self._parts.append(
            f'<div class="query">{above}<blockquote>{shown}{_lines(query)}</blockquote>'
            f"{_cards(hits, 'hits wide' if wide else 'hits')}</div>"
        )

    def cards(self, cards: Sequence[tuple[bytes, str, str]]) -> None:
        """Wide pictures beside one another, each with a text.

        Args:
            cards: (picture, line in bold, text below it).
        """
        self._parts.append(_cards([(*card, False) for card in cards], "hits pictures"))

    def render(self) -> str:
        """The whole page."""
        style = resources.files("medclip_jax.pages").joinpath("style.css").read_text()
        tiles = "".join(
            f'<div class="tile"><b>{html.escape(value)}</b><span>{html.escape(label)}</span></div>'
            for value, label in self._tiles
        )
        contents = "".join(
            f'<a href="#{anchor}">{html.escape(title)}</a>' for anchor, title in self._sections
        )
        # Every section closes the one before it; the first has none to close, the last is closed here.
        body = "\n".join(self._parts).removeprefix("</section>\n") + (
            "\n</section>" if self._sections else ""
        )
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{html.escape(self.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
            f'<h1>{html.escape(self.title)}</h1>\n<p class="subtitle">{html.escape(self.subtitle)}</p>\n'
            f"<nav>{contents}</nav>\n"
            + (f'<div class="tiles">{tiles}</div>\n' if tiles else "")
            + f"{body}\n<footer>Written by medclip_jax. Research software, not for diagnosis.</footer>\n"
            "</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | Path) -> Path:
        """Write the page; folders are made as needed.

        Args:
            path: of the HTML file.

        Returns:
            The path.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.render(), encoding="utf-8")
        return path


def _cards(cards: Iterable[tuple[bytes, str, str, bool]], grid: str) -> str:
    """Pictures with a line in bold and a text below it, those that match marked."""
    kinds = {True: "hit match", False: "hit"}
    shown = "".join(
        f'<div class="{kinds[match]}"><img src="{data_uri(picture)}" '
        f'alt="{html.escape(first)}"><div><b>{html.escape(first)}</b><br>{_lines(second)}</div></div>'
        for picture, first, second, match in cards
    )
    return f'<div class="{grid}">{shown}</div>'


def _lines(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")


def data_uri(picture: bytes) -> str:
    """A PNG, GIF or SVG file as a URI that holds it.

    Args:
        picture: content of the file.
    """
    kinds = {b"\x89PNG": "png", b"GIF8": "gif"}
    kind = kinds.get(picture[:4], "svg+xml")
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def to_png(figure: Figure, *, dpi: int = 110, tight: bool = True) -> bytes:
    """A matplotlib figure as the bytes of a PNG file without time stamp: equal figures, equal bytes.

    Args:
        figure: to draw.
        dpi: pixels per inch.
        tight: cut to what is drawn, with a small margin; otherwise the figure's own size.
    """
    buffer = io.BytesIO()
    box = "tight" if tight else None
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches=box, metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure) -> bytes:
    """A matplotlib figure as the bytes of an SVG file without time stamp: equal figures, equal bytes.

    Args:
        figure: to draw.
    """
    from matplotlib import rc_context  # here: pages without figures do without it

    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "medclip", "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
