"""The running agent seen from outside: status, events, health, control."""
