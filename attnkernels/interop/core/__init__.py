"""The parts that read every library's file and know none of the libraries."""
