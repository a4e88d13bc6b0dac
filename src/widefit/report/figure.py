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
        SVG, already escaped.
    caption
        What a reader needs to know to read it; escaped when drawn.
    legend
        (style, words) for each kind of mark.
    wide
        Takes two columns of the page.
    """

    title: str
    body: str
    caption: str = ""
    legend: tuple[tuple[str, str], ...] = ()
    wide: bool = False

    def html(self) -> str:
        keys = "".join(f'<li><i class="key {style}"></i>{escape(words)}</li>' for style, words in self.legend)
        return (
            f'<figure class="card{" wide" if self.wide else ""}"><h3>{escape(self.title)}</h3>'
            + (f'<ul class="legend">{keys}</ul>' if keys else "")
            + self.body
            + (f"<figcaption>{escape(self.caption)}</figcaption>" if self.caption else "")
            + "</figure>"
        )
