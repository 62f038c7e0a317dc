"""Why a run does not converge, and a fix that was tried: observe, suppose, intervene, verify."""
