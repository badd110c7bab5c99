"""The command `lsgm`: its parser, what each command calls, and how it starts and ends."""
