"""Object stores (s3://, gs://, az://): the client, and scratch space for what is downloaded from them."""
