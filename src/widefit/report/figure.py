"""One figure: a drawing with a title, a legend and a caption."""

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Figure:
    """A drawing and the words around it.

    Attributes
    ----------
    title
        What it shows; escaped when drawn.
    body
        SVG or HTML, already escaped.
    caption
        What a reader needs to know to read it; escaped when drawn.
    legend
        (style, words) for each kind of mark.
    span
        How many of the three columns of the page it takes.
    """

    title: str
    body: str
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    span: int = 1

    def html(self) -> str:
        keys = "".join(f'<li><i class="key {style}"></i>{escape(words)}</li>' for style, words in self.legend)
        return (
            f'<figure class="card span{self.span}"><h3>{escape(self.title)}</h3>'
            + (f'<ul class="legend">{keys}</ul>' if keys else "")
            + self.body
            + (f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else "")
            + "</figure>"
        )
