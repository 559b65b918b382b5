"""What an evaluation found, for people and other tools: one page to look at, JUnit, Markdown for a pull request."""
