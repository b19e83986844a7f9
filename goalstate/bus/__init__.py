"""The message port and its adapters. Knows topics and bytes; imports nothing of the other rooms."""
