"""Host agents: messages of streams in, a programmed data plane and truthful reports out."""
