"""One file per verb; each reads as the story of that verb."""
