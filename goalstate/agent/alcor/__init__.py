"""The services of Alcor's schema: hosts that are pushed to, and pushing to such hosts."""
