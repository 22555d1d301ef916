// Azurite looks for unused extents every ten minutes and answers nobody meanwhile, for a minute once many blobs have
// been: long enough to lose leases. Loaded before Azurite, this makes the pause longer than any run of tests.
const path = require("node:path");
const constants = require(path.join(path.dirname(process.argv[1]), "blob", "utils", "constants"));
constants.DEFAULT_GC_INTERVAL_MS = 2 ** 31 - 1;
