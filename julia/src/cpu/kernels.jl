# The kernels on one tile of samples. A tile's buffers are (TILE, columns): a unit's samples are neighbours, in SIMD lanes.

const TILE = 64
const VECTORS = TILE ÷ LANES

const Tile = NTuple{VECTORS,Lanes}  # a unit's samples

@inline column(buffer::Ptr{Float32}, j) = buffer + j * (TILE * sizeof(Float32))

"A Julia matrix over memory that the caller keeps alive."
@inline matrix(p::Ptr{Float32}, rows, columns) = unsafe_wrap(Array, p, (Int(rows), Int(columns)))

"Calls `f` while subnormal numbers, which are slow, count as zero."
@inline function flushing_subnormals(f::F) where {F}
    before = get_zero_subnormals()
    set_zero_subnormals(true)
    try
        f()
    finally
        set_zero_subnormals(before)
    end
end

@inline load_tile(p::Ptr{Float32}) = ntuple(v -> load_lanes(p + 64 * (v - 1)), Val(VECTORS))

@inline function store_tile(p::Ptr{Float32}, tile::Tile)
    for v in 1:VECTORS
        store_lanes(p + 64 * (v - 1), tile[v])
    end
end

# (Closures over a variable that changes are slow: the body of such a loop is a function of its own.)
@inline mul_tiles(a::Tile, b::Tile) = ntuple(v -> mul(a[v], b[v]), Val(VECTORS))
@inline muladd_tiles(a::Tile, b::Lanes, c::Tile) = ntuple(v -> muladd_lanes(a[v], b, c[v]), Val(VECTORS))
@inline muladd_tiles(a::Tile, b::Tile, c::Tile) = ntuple(v -> muladd_lanes(a[v], b[v], c[v]), Val(VECTORS))

"As `multiply!`, over a sparse block, whose weights begin at `w`."
function multiply_sparse!(out::Ptr{Float32}, in::Ptr{Float32}, w::Ptr{Float32}, sums::EdgeList)
    @inbounds for k in 1:length(sums.start) - 1
        acc = ntuple(_ -> splat(0f0), Val(VECTORS))
        for e in sums.start[k]:sums.start[k + 1] - 1
            acc = muladd_tiles(load_tile(column(in, sums.index[e] - 1)), splat(unsafe_load(w, sums.edge[e] + 1)), acc)
        end
        store_tile(column(out, k - 1), acc)
    end
end

"The edges whose flows over a tile wait to be added up across the lanes, 16 at a time: (LANES, LANES), and their places."
struct WaitingEdges
    flows::Vector{Float32}
    edges::Vector{Int32}
end

# Sparse blocks alone have need of it. (More than is needed: Julia puts only large arrays where cache lines begin.)
WaitingEdges(sparse::Bool) = WaitingEdges(zeros(Float32, sparse ? 8 * LANES * LANES : 0), zeros(Int32, sparse ? LANES : 0))

"As `flow_down!` and `edge_flows!`, over a sparse block, whose weights and statistics begin at `w` and `stat`."
function flow_down_sparse!(flow::Ptr{Float32}, value::Ptr{Float32}, r::Ptr{Float32}, w::Ptr{Float32}, stat::Ptr{Float32},
                           children::EdgeList, accumulate::Bool, waiting::WaitingEdges)
    flows, places, count = pointer(waiting.flows), pointer(waiting.edges), 0
    @inbounds for j in 1:length(children.start) - 1
        x, acc = load_tile(column(value, j - 1)), ntuple(_ -> splat(0f0), Val(VECTORS))
        for e in children.start[j]:children.start[j + 1] - 1
            edge, ratio = children.edge[e], load_tile(column(r, children.index[e] - 1))
            weight = splat(unsafe_load(w, edge + 1))
            acc = muladd_tiles(ratio, weight, acc)
            store_lanes(flows + 64 * count, dot_lanes(x, ratio))
            unsafe_store!(places, edge, count += 1)
            count == LANES && (add_edge_flows!(stat, flows, places, count); count = 0)
        end
        target = column(flow, j - 1)
        store_tile(target, accumulate ? muladd_tiles(x, acc, load_tile(target)) : mul_tiles(x, acc))
    end
    count > 0 && add_edge_flows!(stat, flows, places, count)
end

@inline function dot_lanes(a::Tile, b::Tile)
    acc = mul(a[1], b[1])
    for v in 2:VECTORS
        acc = muladd_lanes(a[v], b[v], acc)
    end
    return acc
end

"Adds the first `count` of 16 vectors, each summed up, to `stat` at `places`."
@inline function add_edge_flows!(stat::Ptr{Float32}, flows::Ptr{Float32}, places::Ptr{Int32}, count::Int)
    store_lanes(flows, horizontal_sums(ntuple(i -> load_lanes(flows + 64 * (i - 1)), Val(LANES))))
    for i in 1:count
        e = unsafe_load(places, i) + 1
        unsafe_store!(stat, unsafe_load(stat, e) + unsafe_load(flows, i), e)
    end
end

"""
out[:, k] = table[k, x[:]] for `units` rows of a (stride, categories) table; x counts from 0, and -1 stands for a marginalised
variable. `room`: whether 15 numbers may be read beyond the table's end. `map`: nothing, or the scale and the offset of each unit,
where no variable is marginalised.
"""
function look_up!(out::Ptr{Float32}, table::Ptr{Float32}, stride::Int, units::Int, x::Ptr{Int32}, room::Bool, map)
    whole = room ? units : units - units % LANES
    for v in 0:VECTORS - 1
        for k in 0:LANES:whole - 1
            rows = ntuple(Val(LANES)) do s
                category = unsafe_load(x, LANES * v + s)
                category < 0 ? splat(1f0) : load_lanes(table + 4 * (category * stride + k))
            end
            columns = transpose16(rows)
            for l in 1:min(LANES, units - k)
                store_lanes(column(out, k + l - 1) + 64 * v, mapped(columns[l], map, k + l))
            end
        end
    end
    for k in whole:units - 1, s in 1:TILE
        category = unsafe_load(x, s)
        unsafe_store!(column(out, k), category < 0 ? 1f0 : mapped(unsafe_load(table, 1 + k + category * stride), map, 1 + k), s)
    end
    (map === nothing || !any_hidden(x)) && return
    for s in 1:TILE
        unsafe_load(x, s) < 0 || continue
        for k in 0:whole - 1  # what was mapped there was no entry of the table
            unsafe_store!(column(out, k), 1f0, s)
        end
    end
end

"Whether any of a tile's categories is that of a hidden value: below 0."
function any_hidden(x::Ptr{Int32})
    signs = Int32(0)
    @simd for s in 1:TILE
        signs |= unsafe_load(x, s)
    end
    return signs < 0
end

@inline mapped(x, ::Nothing, k) = x
@inline mapped(x::Lanes, map::NTuple{2,Ptr{Float32}}, k) = muladd_lanes(x, splat(unsafe_load(map[1], k)), splat(unsafe_load(map[2], k)))
@inline mapped(x::Float32, map::NTuple{2,Ptr{Float32}}, k) = muladd(x, unsafe_load(map[1], k), unsafe_load(map[2], k))

"""
rows[:, s] = flow[s, :]: the flows of `units` inputs for the tile's first `count` samples, one sample after the other, in steps
of `lanes`.
"""
function keep_flows!(rows::Ptr{Float32}, flow::Ptr{Float32}, units::Int, lanes::Int, count::Int)
    for v in 0:VECTORS - 1, k in 0:LANES:lanes - 1
        own = transpose16(ntuple(l -> k + l <= units ? load_lanes(column(flow, k + l - 1) + 64 * v) : splat(0f0), Val(LANES)))
        target = rows + 4 * (LANES * v * lanes + k)
        if count >= LANES * (v + 1)
            for s in 1:LANES
                store_lanes(target + 4 * (s - 1) * lanes, own[s])
            end
        else
            for s in 1:count - LANES * v
                store_lanes(target + 4 * (s - 1) * lanes, own[s])
            end
        end
    end
end

"out[:] = the sum of `count` rows of flows (see `keep_flows!`), plus `start`."
function total_flows!(out::Ptr{Float32}, rows::Ptr{Float32}, lanes::Int, count::Int, start::Float32)
    for k in 0:LANES:lanes - 1
        totals = ntuple(_ -> splat(0f0), Val(4))  # several, which need not wait for each other
        for s in 0:4:count - 4
            totals = add_vectors(totals, rows + 4 * (s * lanes + k), 4 * lanes)
        end
        total = add(add(totals[1], totals[2]), add(totals[3], totals[4]))
        for s in count - count % 4:count - 1
            total = add(total, load_lanes(rows + 4 * (s * lanes + k)))
        end
        store_lanes(out + 4k, add(total, splat(start)))
    end
end

@inline add_vectors(totals::NTuple{N,Lanes}, p::Ptr{Float32}, step::Int) where {N} =
    ntuple(i -> add(totals[i], load_lanes(p + (i - 1) * step)), Val(N))

"""
table[rows[s] + k] += take[k] * flows[k, s] for `units` rows of flows (see `keep_flows!`). Nothing else is written to: a row that
a vector fits into ends within the first `whole` numbers of the table.
"""
function add_rows!(table::Ptr{Float32}, take::Ptr{Float32}, flows::Ptr{Float32}, rows::Ptr{Int32}, units::Int, whole::Int,
                   lanes::Int, count::Int)
    for k in 0:LANES:lanes - 1
        own, last = load_lanes(take + 4k), k + LANES <= units ? typemax(Int) : whole - LANES - k
        for s in 0:count - 1
            row, flow = Int(unsafe_load(rows, s + 1)), flows + 4 * (s * lanes + k)
            p = table + 4 * (row + k)
            if row <= last
                store_lanes(p, muladd_lanes(own, load_lanes(flow), load_lanes(p)))
            else
                for i in 1:units - k
                    unsafe_store!(p, unsafe_load(p, i) + unsafe_load(take, k + i) * unsafe_load(flow, i), i)
                end
            end
        end
    end
end

"stat[k, x[:]] += flow[:, k]: the statistics of a group of categorical inputs. `room`: whether 0 may be added to what lies beyond."
function input_flows!(stat::Ptr{Float32}, flow::Ptr{Float32}, stride::Int, units::Int, x::Ptr{Int32}, room::Bool)
    whole = room ? units : units - units % LANES
    for v in 0:VECTORS - 1
        for k in 0:LANES:whole - 1
            rows = transpose16(ntuple(l -> k + l <= units ? load_lanes(column(flow, k + l - 1) + 64 * v) : splat(0f0), Val(LANES)))
            for s in 1:LANES
                category = unsafe_load(x, LANES * v + s)
                category < 0 && continue
                p = stat + 4 * (category * stride + k)
                store_lanes(p, add(load_lanes(p), rows[s]))
            end
        end
    end
    for k in whole:units - 1, s in 1:TILE
        category = unsafe_load(x, s)
        category < 0 && continue
        e = 1 + k + category * stride
        unsafe_store!(stat, unsafe_load(stat, e) + unsafe_load(column(flow, k), s), e)
    end
end

"""
out[:, k] *= in[:, index[k]]. Says whether a product of two positive factors underflowed; `underflows`, of a tile's length, is
above 0 for the samples of which one did.
"""
function multiply_units!(out::Ptr{Float32}, in::Ptr{Float32}, units::Int, f::Factor, underflows::Ptr{Float32})
    worst = ntuple(_ -> splat(0f0), Val(VECTORS))
    for k in 0:units - 1
        worst = multiply_unit!(column(out, k), column(in, f.identity ? k : f.index[k + 1] - 1), worst)
    end
    return store_underflows!(underflows, worst)
end

@inline function multiply_unit!(target::Ptr{Float32}, source::Ptr{Float32}, worst::NTuple{VECTORS,Lanes})
    return ntuple(Val(VECTORS)) do v
        a, b = load_lanes(target + 64 * (v - 1)), load_lanes(source + 64 * (v - 1))
        product = mul(a, b)
        store_lanes(target + 64 * (v - 1), product)
        max_lanes(worst[v], underflow(product, a, b))
    end
end

function store_underflows!(underflows::Ptr{Float32}, worst::NTuple{VECTORS,Lanes})
    total = splat(0f0)
    for v in 1:VECTORS
        store_lanes(underflows + 64 * (v - 1), worst[v])
        total = add(total, worst[v])
    end
    return horizontal_sum(total) > 0
end

"out[:, k] = in[:, index[k]]"
function copy_units!(out::Ptr{Float32}, in::Ptr{Float32}, units::Int, f::Factor)
    for k in 0:units - 1
        source, target = column(in, f.identity ? k : f.index[k + 1] - 1), column(out, k)
        for v in 0:VECTORS - 1
            store_lanes(target + 64 * v, load_lanes(source + 64 * v))
        end
    end
end

"out[:, index[k]] += in[:, k]"
function scatter_units!(out::Ptr{Float32}, in::Ptr{Float32}, units::Int, f::Factor)
    for k in 0:units - 1
        source, target = column(in, k), column(out, f.identity ? k : f.index[k + 1] - 1)
        for v in 0:VECTORS - 1
            store_lanes(target + 64 * v, add(load_lanes(target + 64 * v), load_lanes(source + 64 * v)))
        end
    end
end

# Scales are powers of two: scaling rounds nothing, and no logarithm is taken before the head.

# A value this far below the largest of its group is looked at for what underflow took from it (losses.jl).
const SMALL = 2f0^-90

"""
Scales `units` columns so that the largest value of each sample lies in [sqrt(1/2), sqrt(2)), adds the exponent taken out to
`exponent`, and leaves the factor put in, 2^-exponent, in `factor`, and each sample's smallest value, as it is then, in `least`. A
sample whose values are all zero is left alone. Returns whether a value of any sample is below `SMALL`, before or after.

(Around 1 on both sides: a product over hundreds of groups then drifts neither to zero nor to infinity.)
"""
function normalise!(values::Ptr{Float32}, units::Int, exponent::Ptr{Int32}, factor::Ptr{Float32}, least::Ptr{Float32})
    lowest = splat(Inf32)
    for v in 0:VECTORS - 1
        top = low = load_lanes(values + 64 * v)
        for k in 1:units - 1
            x = load_lanes(column(values, k) + 64 * v)
            top, low = max_lanes(top, x), min_lanes(low, x)
        end
        e = exponent_lanes(top)
        store_lanes(exponent + 64 * v, add(load_lanes(exponent + 64 * v), e))
        scale = power_of_two(negate(e))
        store_lanes(factor + 64 * v, scale)
        scaled_low = mul(low, scale)
        store_lanes(least + 64 * v, scaled_low)
        lowest = min_lanes(lowest, min_lanes(low, scaled_low))
        for k in 0:units - 1
            p = column(values, k) + 64 * v
            store_lanes(p, mul(load_lanes(p), scale))
        end
    end
    return any_less(lowest, splat(SMALL))
end

"factor = 2^(before - after), of exponents."
function scale_between!(factor::Ptr{Float32}, before::Ptr{Int32}, after::Ptr{Int32})
    for v in 0:VECTORS - 1
        store_lanes(factor + 64 * v, power_of_two(add(load_lanes(before + 64 * v), negate(load_lanes(after + 64 * v)))))
    end
end

"""
The common scale of several child groups: `common` becomes the largest of their exponents (of those samples that are not all
zero there), and `factors[:, b]` = 2^(exponent of group b - common).
"""
function common_scale!(common::Ptr{Int32}, factors::Ptr{Float32}, exponents::Vector{Ptr{Int32}}, count::Int)
    for v in 0:VECTORS - 1
        top = load_lanes(exponents[1] + 64 * v)
        for b in 2:count
            top = max_lanes(top, load_lanes(exponents[b] + 64 * v))
        end
        store_lanes(common + 64 * v, top)
        for b in 1:count
            store_lanes(column(factors, b - 1) + 64 * v, power_of_two(add(load_lanes(exponents[b] + 64 * v), negate(top))))
        end
    end
end

"out[:, k] (+)= in[:, k] * factor"
function scale_units!(out::Ptr{Float32}, in::Ptr{Float32}, units::Int, factor::Ptr{Float32}, accumulate::Bool)
    for v in 0:VECTORS - 1
        scale = load_lanes(factor + 64 * v)
        for k in 0:units - 1
            p = column(out, k) + 64 * v
            x = mul(load_lanes(column(in, k) + 64 * v), scale)
            store_lanes(p, accumulate ? add(load_lanes(p), x) : x)
        end
    end
end

"""
values[:, k] = flow[:, k] / values[:, k] * factor: a sum's flow for each unit of its value. `factor` undoes the normalisation
of the values. A value of zero carries no flow.
"""
function ratios!(values::Ptr{Float32}, flow::Ptr{Float32}, units::Int, factor::Ptr{Float32})
    for v in 0:VECTORS - 1
        scale = load_lanes(factor + 64 * v)
        for k in 0:units - 1
            p = column(values, k) + 64 * v
            store_lanes(p, mul(ratio(load_lanes(column(flow, k) + 64 * v), load_lanes(p)), scale))
        end
    end
end
