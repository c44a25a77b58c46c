"""Studies: the file, the search, the finalists, what is kept, and the leaderboard."""
