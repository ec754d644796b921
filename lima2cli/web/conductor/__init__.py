"""The REST interface of Lima2's conductor: its client, `lima2-client`, drives runs of a pipeline."""
