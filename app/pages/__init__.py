"""Pages for people's browsers, by whichever server of ours: template, style, rules of access."""
