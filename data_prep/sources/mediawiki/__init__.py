"""From a MediaWiki dump to prose: bzip2 blocks → export XML → wikitext → prose."""
