# SPDX-License-Identifier: Apache-2.0
# needs: lua5.4
# limit: 120
# program: lua.*
# shows: sums over tables and coroutines equal those without the library
# compare
set -eu
lua5.4 -e '
local state = 1
local function nextn() state = (state * 1103515245 + 12345) % 2147483648; return state // 65536 end
local t = {}
for i = 1, 1000000 do
  local k = nextn() % 20000
  t[k] = { n = i, s = string.rep("x", i % 300) .. i, prev = i % 7 == 0 and t[k] and t[k].n or nil }
  if i % 3 ~= 0 then t[nextn() % 20000] = nil end
end
local n, sum = 0, 0
for k = 0, 19999 do local v = t[k]; if v then n = n + 1; sum = sum + v.n + #v.s end end
print(n, sum)
local co = {}
for i = 1, 5000 do co[i] = coroutine.wrap(function() for j = 1, 10 do coroutine.yield(("c"):rep(j)) end end) end
local len = 0
for j = 1, 10 do for i = 1, 5000 do len = len + #co[i]() end end
print(len)
'
