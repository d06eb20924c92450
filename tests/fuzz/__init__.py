"""Every parser of outside bytes under mutations of a kept corpus: properties that hold whatever comes.

`corpus/<parser>.yaml` lists what registries, clients and proxies really send, what is just wrong about it, and what was
found here: an input that broke a property is added with a word on what it broke. `parsers` says what each parser
promises, `corpus` damages the entries, `test_parsers` brings the two together. `make fuzz` does it for long.
"""
