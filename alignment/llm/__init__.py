"""Resumable calls to language models: every finished call is kept and none is asked twice."""
