"""How callers prove who they are: tokens, an issuer's JWTs, cookies, signed URLs."""
