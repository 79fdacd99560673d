"""Messages and stubs of `ditcast.v1`, generated from `proto/ditcast/v1`; never edited by hand."""
