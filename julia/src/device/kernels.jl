# Kernels of the device engine: each does what it does for one index, whatever array it is given, and knows no device. Arrays of values
# are (samples, columns): the samples of one unit are neighbours, for neighbouring threads.

"""
    launch!(f, like, n, args...)

Calls `f(i, args...)` for i = 1:n, in any order and side by side, where the array `like` is. Here: on the CPU's threads. A package of
arrays of another kind adds a method for them, with `args` as its kernels take them.
"""
function launch!(f::F, like::Array, n::Int, args::Vararg{Any,K}) where {F,K}
    if n < 1024
        for i in 1:n
            f(i, args...)
        end
    else
        Threads.@threads for i in 1:n
            f(i, args...)
        end
    end
    return nothing
end

"""
    matrix_product!(c, a, b, beta, turn_a, turn_b)

c = a b + beta c, of matrices on the device, each turned (transposed) first where `turn_a`, `turn_b` say so.
"""
function matrix_product!(c, a, b, beta::Float32, turn_a::Bool=false, turn_b::Bool=false)
    mul!(c, turn_a ? transpose(a) : a, turn_b ? transpose(b) : b, 1f0, beta)
    return nothing
end

"""
    matrix_products!(like, cs, as, bs, beta, turn_a, turn_b)

[`matrix_product!`](@ref) of each of some matrices of one shape, side by side, where the array `like` is: the cs have no number in common.
"""
function matrix_products!(like, cs, as, bs, beta::Float32, turn_a::Bool=false, turn_b::Bool=false)
    for k in eachindex(cs)
        matrix_product!(cs[k], as[k], bs[k], beta, turn_a, turn_b)
    end
    return nothing
end

function matrix_products!(::Array, cs, as, bs, beta::Float32, turn_a::Bool=false, turn_b::Bool=false)
    Threads.@threads for k in eachindex(cs)
        matrix_product!(cs[k], as[k], bs[k], beta, turn_a, turn_b)
    end
    return nothing
end

"""
    zeros_at(array, T, sizes...)

Zeros where `array` puts Julia's own arrays. A package of arrays of another kind adds a method that makes them there.
"""
zeros_at(array, T, sizes::Int...) = array(zeros(T, sizes))

"Sample and item of index `i`, of `rows` samples an item: by a division that cannot throw, for then nothing in a kernel does."
@inline function at(i::Int, rows::Int)
    item, sample = divrem((i - 1) % UInt, max(rows, 1) % UInt)
    return sample % Int + 1, item % Int + 1
end

# The scalar forms of what simd.jl has for 16 samples.
@inline function rounded_exponent(top::Float32)
    top > 0 || return EXPONENT_OF_ZERO
    return ((reinterpret(UInt32, top) + (0x3f800000 - 0x3f3504f3)) >> 23) % Int32 - Int32(127)
end

@inline two_to(e::Int32) = e < -126 ? 0f0 : reinterpret(Float32, ((min(e, Int32(127)) + Int32(127)) % UInt32) << 23)

@inline safe_ratio(a::Float32, b::Float32) = b >= Float32(SMALLEST_DIVISOR) ? a / b : 0f0

"A bound on what values lack, once they are multiplied by `factor`: where all was lost, Inf, nothing makes it small."
@inline scaled_bound(bound::Float32, factor::Float32) = bound > 0 ? (factor > 1 / LOSS ? Inf32 : bound * factor) : bound

# ------------------------------------------------------------------------------------------------------------------------ up

"The value of an input unit; a hidden variable is -1."
function input_value!(i, values, rows, x, leaf, column, variable, start, stride)
    n, u = at(i, rows)
    @inbounds category = x[n, variable[u]]
    @inbounds values[n, column[u]] = category < 0 ? 1f0 : leaf[start[u] + category * stride[u]]
    return nothing
end

"Groups of inputs whose values smaller than `least` have lost digits, or all."
function small_input!(i, lost, values, rows, least, groups, first, width)
    n, p = at(i, rows)
    @inbounds for k in 1:width[p]
        values[n, first[p] + k] < least && (lost[n, groups[p]] = least)
    end
    return nothing
end

"""
The values of a product group, factor by factor; after every `FACTORS_BETWEEN_SCALING`, and at the end where `nested`, they are scaled.
The bound of (a + da) (b + db) - a b is a db + (b + db) da.
"""
function product_values!(i, values, exponents, lost, rows, groups, first, width, nested, factors, child, child_first, place, index, largest)
    n, p = at(i, rows)
    @inbounds begin
        own, top_of_group, bound, most, underflowed = first[p], Int32(0), 0f0, 1f0, false
        last_factor, done = factors[p + 1] - Int32(1), 0
        for f in factors[p]:last_factor
            for k in Int32(1):width[p]
                b = values[n, child_first[f] + (place[f] < 0 ? k : index[place[f] + k])]
                a = done == 0 ? 1f0 : values[n, own + k]
                underflowed |= a * b < LOSS && a > 0 && b > 0
                values[n, own + k] = a * b
            end
            done += 1
            db = lost[n, child[f]]
            bound = most * db + (bound > 0 ? (largest[f] + db) * bound : 0f0) + (underflowed ? LOSS : 0f0)
            underflowed = false
            most *= largest[f]
            top_of_group += exponents[n, child[f]]
            if done % FACTORS_BETWEEN_SCALING == 0 || (f == last_factor && nested[p])
                top = 0f0
                for k in 1:width[p]
                    top = max(top, values[n, own + k])
                end
                e = rounded_exponent(top)
                scale = two_to(-e)
                for k in 1:width[p]
                    values[n, own + k] *= scale
                end
                top_of_group += e
                bound, most = scaled_bound(bound, scale), LARGEST_SUM
            end
        end
        exponents[n, groups[p]], lost[n, groups[p]] = top_of_group, bound
    end
    return nothing
end

"What the scale of a group of pairs is, whose values are not kept, and what they would lack: its smallest positive values say whether any underflow."
function pair_scale!(i, values, exponents, lost, rows, groups, slow, slow_first, slow_count, slow_largest, fast, fast_first, fast_count,
                     fast_largest)
    n, p = at(i, rows)
    @inbounds begin
        a = least_above_zero(values, n, slow_first[p], slow_count[p])
        b = least_above_zero(values, n, fast_first[p], fast_count[p])
        bound, db = lost[n, slow[p]], lost[n, fast[p]]
        lost[n, groups[p]] = slow_largest[p] * db + (bound > 0 ? (fast_largest[p] + db) * bound : 0f0) + (a * b < LOSS ? LOSS : 0f0)
        exponents[n, groups[p]] = exponents[n, slow[p]] + exponents[n, fast[p]]
    end
    return nothing
end

@inline function least_above_zero(values, n, first, count)
    least = Inf32
    @inbounds for k in first + 1:first + count
        0 < values[n, k] < least && (least = values[n, k])
    end
    return least
end

"part[:, p] = the product of pair p, of blocks that have `slow_count` times `fast_count` of them each."
function pair_product!(i, part, values, rows, slow_count, fast_count, slow_first, fast_first)
    n, p = at(i, rows)
    pair, block = at(p, slow_count * fast_count)
    k, j = at(pair, fast_count)
    @inbounds part[n, p] = values[n, slow_first[block] + j] * values[n, fast_first[block] + k]
    return nothing
end

"The exponent that a sum group's blocks are brought to: the largest of its child groups'."
function common_exponent!(i, exponents, rows, groups, blocks, child)
    n, p = at(i, rows)
    @inbounds begin
        top = exponents[n, child[blocks[p]]]
        for b in blocks[p] + 1:blocks[p + 1] - 1
            top = max(top, exponents[n, child[b]])
        end
        exponents[n, groups[p]] = top
    end
    return nothing
end

"Sum k's values (+)= part[:, k], brought from the child group's scale to the group's."
function add_block!(i, values, part, exponents, rows, adds, column, group, child)
    n, k = at(i, rows)
    @inbounds value = part[n, k] * two_to(exponents[n, child[k]] - exponents[n, group[k]])
    @inbounds values[n, column[k]] = adds ? values[n, column[k]] + value : value
    return nothing
end

"The sum over the edges that unit k has in a sparse list, of sample n of the units at their other ends."
@inline function over_edges(other, n, k, weight, start, index, edge)
    total = 0f0
    @inbounds for e in start[k]:start[k + 1] - 1
        total += other[n, index[e]] * weight[edge[e]]
    end
    return total
end

"out[:, place[k]] = the sum over the edges of sum k."
function sparse_sums!(i, out, values, weight, rows, place, start, index, edge)
    n, k = at(i, rows)
    @inbounds out[n, place[k]] = over_edges(values, n, k, weight, start, index, edge)
    return nothing
end

"""
Scales a sum group, and bounds what its values lack: what its children lack; a `LOSS` for each of its `terms` where a value is so small
that terms may have underflowed; and what is too small to divide flows by.
"""
function finish_sums!(i, values, exponents, lost, rows, groups, first, width, blocks, child, terms)
    n, p = at(i, rows)
    @inbounds begin
        g, own, bound = groups[p], first[p], 0f0
        for b in blocks[p]:blocks[p + 1] - 1
            carried, scale = lost[n, child[b]], two_to(exponents[n, child[b]] - exponents[n, g])
            bound = max(bound, carried < Inf32 ? carried * scale : carried)
        end
        top, low = 0f0, Inf32
        for k in 1:width[p]
            top, low = max(top, values[n, own + k]), min(low, values[n, own + k])
        end
        e = rounded_exponent(top)
        scale = two_to(-e)
        min(low, low * scale) < SMALL && (bound += LARGEST_FACTOR * LOSS * terms[p])
        bound = scaled_bound(bound, scale)
        small = false
        for k in 1:width[p]
            value = values[n, own + k] * scale
            small |= 0 < value < Float32(SMALLEST_DIVISOR)
            values[n, own + k] = value
        end
        small && (bound += Float32(SMALLEST_DIVISOR))
        lost[n, g] = bound < low * scale * DWARFED ? 0f0 : bound
        exponents[n, g] += e
    end
    return nothing
end

"A head's value, NaN where it is not certain."
@inline function certain_value(values, lost, n, column, group)
    @inbounds value, bound = values[n, column], lost[n, group]
    return value > 0 && (bound == 0 || value * DWARFED > bound) ? value : NaN32
end

"A head's value, NaN where it is not certain, and its exponent."
function take_head!(i, head_value, head_exponent, values, exponents, lost, rows, column, group)
    n, h = at(i, rows)
    @inbounds head_value[n, h] = certain_value(values, lost, n, column[h], group[h])
    @inbounds head_exponent[n, h] = exponents[n, group[h]]
    return nothing
end

"The values of sample i's heads, `unit` of which is which of those units, all brought to the largest of their exponents; (heads, samples)."
function take_heads!(i, head_value, head_exponent, values, exponents, lost, column, group, unit)
    @inbounds begin
        top = exponents[i, group[unit[1]]]
        for h in 2:length(unit)
            top = max(top, exponents[i, group[unit[h]]])
        end
        for h in 1:length(unit)
            u = unit[h]
            e = exponents[i, group[u]] - top
            most = max(e, Int32(-126))  # in two steps: the result may be subnormal
            head_value[h, i] = certain_value(values, lost, i, column[u], group[u]) * two_to(most) * two_to(e - most)
        end
        head_exponent[i] = top
    end
    return nothing
end

# ---------------------------------------------------------------------------------------------------------------------- down

"Puts what starts in the heads' units there."
function start_flow!(i, flows, rows, started, column)
    n, h = at(i, rows)
    @inbounds flows[n, column[h]] = started[n, h]
    return nothing
end

"Adds the flows of all products that have a unit for a factor to its own."
function gather_flow!(i, flows, rows, column, start, parent)
    n, q = at(i, rows)
    @inbounds total = flows[n, column[q]]
    @inbounds for p in start[q]:start[q + 1] - 1
        total += flows[n, parent[p]]
    end
    @inbounds flows[n, column[q]] = total
    return nothing
end

"ratio[:, k] = flow / value of a sum, in the scale of the child group that it goes to."
function flow_ratio!(i, ratio, flows, values, exponents, rows, column, group, child)
    n, k = at(i, rows)
    @inbounds scale = two_to(exponents[n, child[k]] - exponents[n, group[k]])
    @inbounds ratio[n, k] = safe_ratio(flows[n, column[k]], values[n, column[k]]) * scale
    return nothing
end

"Value of an input unit <- flow / value."
function input_ratio!(i, values, flows, rows, column)
    n, k = at(i, rows)
    @inbounds values[n, column[k]] = safe_ratio(flows[n, column[k]], values[n, column[k]])
    return nothing
end

"The flow of child j += its value * part[:, j]."
function send_flow!(i, flows, values, part, rows, column)
    n, j = at(i, rows)
    @inbounds flows[n, column[j]] += values[n, column[j]] * part[n, j]
    return nothing
end

"""
What the pairs of a unit of one side pass on to it: `part[:, p]`, of all its pairs, times the values of both. Each block has `count` units on this
side and `others` on the other, from the columns behind `own` and `other`; a unit's pairs are `step` apart, those of its neighbours `next`.
"""
function send_pair_flow!(i, flows, values, part, rows, count, next, others, step, own, other)
    n, j = at(i, rows)
    unit, block = at(j, count)
    total, first_pair = 0f0, 1 + (block - 1) * count * others + (unit - 1) * next
    @inbounds for k in 1:others
        total += values[n, other[block] + k] * part[n, first_pair + (k - 1) * step]
    end
    @inbounds flows[n, own[block] + unit] += values[n, own[block] + unit] * total
    return nothing
end

"The flow of child j += its value * what comes from `ratio` along its edges."
function sparse_flow!(i, flows, values, ratio, weight, rows, column, start, index, edge)
    n, j = at(i, rows)
    @inbounds flows[n, column[j]] += values[n, column[j]] * over_edges(ratio, n, j, weight, start, index, edge)
    return nothing
end

"Adds sparse blocks' edge flows, less their weights, over all samples: index `i` is a child, whose edges no other has."
function sparse_edges!(i, statistic, values, ratio, rows, column, start, index, edge)
    @inbounds for e in start[i]:start[i + 1] - 1
        total, k = 0f0, index[e]
        for n in 1:rows
            total += values[n, column[i]] * ratio[n, k]
        end
        statistic[edge[e]] += total
    end
    return nothing
end

"Adds an input's flows to those of its categories."
function input_flow!(i, statistic, flows, rows, x, column, variable, start, stride)
    @inbounds for n in 1:rows
        category = x[n, variable[i]]
        category < 0 || (statistic[start[i] + category * stride[i]] += flows[n, column[i]])
    end
    return nothing
end


# -------------------------------------------------------------------------------------------------------------------- M-step

"statistic[i] *= parameter[i]"
function multiply_by!(i, statistic, parameter)
    @inbounds statistic[i] *= parameter[i]
    return nothing
end

"sum[i] += part[i], which is cleared."
function move_into!(i, sum, part)
    @inbounds sum[i] += part[i]
    @inbounds part[i] = 0
    return nothing
end

"Gives each edge that is tied by tie i the flow of all of them; `statistic` leaves out the weight."
function tie_edges!(i, statistic, weight, start, edge)
    total = 0.0
    @inbounds for k in start[i]:start[i + 1] - 1
        total += Float64(weight[edge[k]]) * statistic[edge[k]]
    end
    @inbounds for k in start[i]:start[i + 1] - 1
        e = edge[k]
        weight[e] > 0 && (statistic[e] = total / weight[e])
    end
    return nothing
end

"theta <- (1 - step) theta + step * shares of flow, for a sum: its flows are theta times what `statistic` holds, which is cleared."
function sum_step!(i, weight, statistic, step, pseudocount, first, count)
    @inbounds begin
        total = pseudocount + zero(eltype(statistic))
        for e in first[i]:first[i] + count[i] - 1
            total += weight[e] * statistic[e]
        end
        learns = has_flow(total)
        take, keep = learns ? step / total : zero(total), learns ? 1 - step : 1f0
        prior = take * (pseudocount / count[i])
        for e in first[i]:first[i] + count[i] - 1
            weight[e] = (keep + take * statistic[e]) * weight[e] + prior
            statistic[e] = 0
        end
    end
    return nothing
end

"The same for a categorical input, whose statistic is its flows."
function categorical_step!(i, leaf, statistic, step, pseudocount, start, stride, categories)
    @inbounds begin
        total = pseudocount + zero(eltype(statistic))
        for c in 0:categories[i] - 1
            total += statistic[start[i] + c * stride[i]]
        end
        learns = has_flow(total)
        take, keep = learns ? step / total : zero(total), learns ? 1 - step : 1f0
        prior = take * (pseudocount / categories[i])
        for c in 0:categories[i] - 1
            e = start[i] + c * stride[i]
            leaf[e] = keep * leaf[e] + take * statistic[e] + prior
            statistic[e] = 0
        end
    end
    return nothing
end

"A categorical input without the values that are not `allowed`, (categories, variables): `limit_inputs!`"
function limit_input!(i, leaf, allowed, variable, start, stride, categories)
    @inbounds begin
        total, others, v = 0.0, 0, variable[i]
        for c in 0:categories[i] - 1
            if allowed[c + 1, v]
                total += leaf[start[i] + c * stride[i]]
                others += 1
            end
        end
        others == categories[i] && return nothing
        for c in 0:categories[i] - 1
            e = start[i] + c * stride[i]
            leaf[e] = !allowed[c + 1, v] ? 0f0 : total > 0 ? Float32(leaf[e] / total) : 1f0 / others
        end
    end
    return nothing
end
