"""What `make docs` checks of the built pages: links to pages, files and anchors that are not there."""

from __future__ import annotations

from docs.check_site import dead_links

INDEX = """
<h1 id="top">Title</h1> <a href="#top">up</a> <a href="#bottom">down</a>
<a href="other.html">page</a> <a href="other.html#part">part</a> <a href="other.html#none">no part</a>
<a href="none.html">no page</a> <img src="a%20picture.png"> <img src="none.png"> <a href="https://example.org/x">elsewhere</a>
"""


def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "index.html").write_text(INDEX)
    (tmp_path / "other.html").write_text('<p id="part"></p>')
    (tmp_path / "a picture.png").touch()
    checked, dead = dead_links(tmp_path)
    assert checked == 8
    assert dead == [f"index.html: {link}" for link in ("#bottom", "other.html#none", "none.html", "none.png")]
