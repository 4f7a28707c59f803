"""LSANet: a deeply supervised classifier with layer selective attention and knowledge synergy."""
