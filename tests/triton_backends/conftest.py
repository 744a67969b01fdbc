"""The server's own Python runs these files; pytest does not collect them."""

collect_ignore_glob = ["*"]
