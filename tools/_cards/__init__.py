"""Model cards part by part, their index, pictures and links, and the zoo page."""
