"""The captioned world: `scene` (what may be asked), `grammar` (in words), `render` (painted), `find` (seen again),
`grade` (judged)."""
