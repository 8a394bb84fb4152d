"""What the tests share: building guests, running the `ring3` command."""
