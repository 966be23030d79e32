#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Checks the model of the claim, free, pack and fork protocols, and that each listed bug makes it fail.
exec "${abs_top_srcdir:?}/model/check.sh"
