"""From bytes to pixels: folders, zips, tables and images are found, decoded and cached."""
