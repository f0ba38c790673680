# Shapes under offsets: what a patch says of the hidden state h of its position (docs/offsets.md).
#
#     p(x | h) = sum_j p(j | h) prod_c m_jc(h),    m_jc(h) = sum_d p_c(d | h) p_kc(x_c - step_c d | r),    j = (k, r)
#
# A shape k is a circuit for each channel c, all of which have the same heads r: their join. One offset d for each channel shifts the
# channel's values, modulo the number of categories: the same circuit under all offsets. Because the channels meet in j alone, the sum
# over the offsets of all channels is a product of sums. Values of circuits come scaled from the engine; the sums are in Float64, where
# no product of theirs is lost.

"""
    Emissions(shapes, steps, join, shifts)

`shapes[k][c]`: the engine of shape k's circuit over channel c. `steps[c]`: between offsets, a divisor of the number of categories;
as large as that where the channel has no offset. `join`, Float32 `(states, joins)`: p(j | h), shape after shape. `shifts[c]`, Float32
`(states, offsets)`: p_c(d | h), d from 0. All are kept, not copied. Throws an `ArgumentError` where they do not fit together.
"""
struct Emissions{E<:Engine}
    shapes::Vector{Vector{E}}
    joins::Vector{UnitRange{Int}}           # of each shape
    steps::Vector{Int}
    join::Matrix{Float32}
    shifts::Vector{Matrix{Float32}}
    categories::Int
    allowed::Vector{Vector{Matrix{Bool}}}   # of each shape and channel: (categories, variables) that some unit allows
end

function Emissions(shapes::Vector{Vector{E}}, steps::AbstractVector{<:Integer}, join::Matrix{Float32},
                   shifts::Vector{Matrix{Float32}}) where {E<:Engine}
    isempty(shapes) && throw(ArgumentError("shapes: found none, wanted at least 1"))
    channels, joins = length(steps), UnitRange{Int}[]
    for (k, own) in enumerate(shapes)
        length(own) == channels ||
            throw(ArgumentError("shapes: shape $(k - 1) has $(length(own)) circuits, wanted one for each of $channels channels"))
        heads = num_heads(circuit(own[1]))
        all(e -> num_heads(circuit(e)) == heads, own) ||
            throw(ArgumentError("shapes: the circuits of shape $(k - 1) have other numbers of heads than one another"))
        first = isempty(joins) ? 1 : last(joins[end]) + 1
        push!(joins, first:first + heads - 1)
    end
    circuits = [circuit(e) for own in shapes for e in own]
    V, C = circuits[1].num_vars, Int(category_limits(circuits[1])[1])
    all(c -> c.num_vars == V && all(==(C), category_limits(c)), circuits) ||
        throw(ArgumentError("shapes: found circuits over other numbers of variables, or of categories, than the first"))
    all(step -> step >= 1 && C % step == 0, steps) || throw(ArgumentError("steps: found $steps, wanted divisors of $C"))
    S = size(join, 1)
    size(join, 2) == last(joins[end]) || throw(ArgumentError("join: found $(size(join, 2)) joins, the shapes have $(last(joins[end]))"))
    for (c, (shift, step)) in enumerate(zip(shifts, steps))
        size(shift) == (S, C ÷ step) ||
            throw(ArgumentError("shifts: found $(reverse(size(shift))) for channel $(c - 1), wanted $((C ÷ step, S))"))
    end
    allowed = [[allowed_values(circuit(e)) for e in own] for own in shapes]
    return Emissions(shapes, joins, collect(Int, steps), join, shifts, C, allowed)
end

num_states(em::Emissions) = size(em.join, 1)
num_channels(em::Emissions) = length(em.steps)

"What values, (categories, variables), have a probability above 0 in some input."
function allowed_values(c::Circuit)
    allowed = fill(false, maximum(category_limits(c)), c.num_vars)
    for u in 1:num_units(c)
        isinput(c.kind[u]) && (view(allowed, :, c.variable[u]) .|= probabilities(c, u) .> 0)
        pause(10 + size(allowed, 1))
    end
    return allowed
end

"[`limit_inputs!`](@ref)"
function limit_inputs!(c::Circuit, allowed::AbstractMatrix{Bool})
    limited = [!all(view(allowed, :, v)) for v in 1:c.num_vars]
    for u in 1:num_units(c)
        isinput(c.kind[u]) && limited[c.variable[u]] || continue
        p, own = probabilities(c, u), view(allowed, :, c.variable[u])
        total = 0.0
        for x in eachindex(p)
            own[x] ? (total += p[x]) : (p[x] = 0f0)
        end
        for x in eachindex(p)
            own[x] && (p[x] = total > 0 ? p[x] / total : 1 / count(own))
        end
        pause(10 + 3 * length(p))
    end
    return nothing
end

"The tables in Float64, as the sums over offsets read them."
struct OffsetTables
    join::Matrix{Float64}
    shifts::Vector{Matrix{Float64}}
end

OffsetTables(em::Emissions) = OffsetTables(Float64.(em.join), [Float64.(shift) for shift in em.shifts])

"""
Patches as a shape's circuit of one channel sees them: a row for each of a patch's offsets under which no known value is impossible. Patch
n's rows are `first[n]:first[n + 1] - 1`; p(row | head) is `values[head, row] * exp(scale[row])`, and `factor[row]` is
exp(scale[row] - top[n]). A patch with none either has nothing known in this channel (`free`) or is impossible.
"""
struct ChannelRows{D}
    data::D                     # residuals, (variables, rows)
    offset::Vector{Int32}       # of each row, from 0
    first::Vector{Int}
    free::Vector{Bool}
    values::Matrix{Float32}
    scale::Vector{Float64}
    factor::Vector{Float64}
    top::Vector{Float64}
end

"`patches`, (variables, patches), with the values that `mask` hides unknown."
function ChannelRows(em::Emissions, k::Int, c::Int, patches::AbstractMatrix{T}, mask) where {T<:Integer}
    e, step, C, N = em.shapes[k][c], em.steps[c], em.categories, size(patches, 2)
    variables, allowed, free = c:num_channels(em):size(patches, 1), em.allowed[k][c], fill(false, N)
    limited = findall(v -> !all(view(allowed, :, v)), 1:length(variables))
    fits(n, d) = all_fit(patches, mask, n, variables, allowed, limited, step * d, C)
    first = ones(Int, N + 1)
    Threads.@threads for n in 1:N
        free[n] = mask !== nothing && all(v -> mask[v, n], variables)
        first[n + 1] = free[n] ? 0 : count(d -> fits(n, d), 0:C ÷ step - 1)
    end
    cumsum!(first, first)
    rows = first[N + 1] - 1
    offset, owner, residuals = Vector{Int32}(undef, rows), Vector{Int32}(undef, rows), Matrix{T}(undef, length(variables), rows)
    Threads.@threads for n in 1:N
        row = first[n]
        free[n] || for d in 0:C ÷ step - 1
            fits(n, d) || continue
            offset[row], owner[row] = d, n
            for (i, v) in enumerate(variables)
                @inbounds residuals[i, row] = hidden(mask, v, n) ? zero(T) : residual(patches[v, n], step * d, C) % T
            end
            row += 1
        end
    end
    data = mask === nothing ? residuals : Masked(residuals, mask[variables, owner])
    values, scale = Matrix{Float32}(undef, num_heads(circuit(e)), rows), Vector{Float64}(undef, rows)
    certain_head_values!(values, scale, e, data)
    found = ChannelRows(data, offset, first, free, values, scale, similar(scale), zeros(N))
    foreach(n -> rescale!(found, n, maximum(view(scale, rows_of(found, n)))), filter(n -> first[n] < first[n + 1], 1:N))
    return found
end

"Whether no known value of patch `n`, less `shift`, is impossible in all units of its variable."
function all_fit(patches, mask, n, variables, allowed, limited, shift, C)
    for i in limited
        v = variables[i]
        @inbounds hidden(mask, v, n) || allowed[residual(patches[v, n], shift, C) + 1, i] || return false
    end
    return true
end

"Takes exp(`top`) out of the values of patch `n`."
function rescale!(rows::ChannelRows, n::Int, top::Float64)
    rows.top[n] = top
    for row in rows_of(rows, n)
        rows.factor[row] = exp(min(rows.scale[row] - top, 200.0))  # more only of what is to be multiplied by 0
    end
end

"`x - shift` modulo `C`; both are within 0..C - 1."
@inline function residual(x, shift, C)
    r = Int(x) - Int(shift)
    return ifelse(r < 0, r + C, r)
end

rows_of(rows::ChannelRows, n::Int) = rows.first[n]:rows.first[n + 1] - 1

possible(rows::ChannelRows, n::Int) = rows.free[n] || rows.first[n] < rows.first[n + 1]

"What is taken out of the values of all channels of patch `n`, in nats."
scale_of(channels::Vector{<:ChannelRows}, n::Int) = sum(rows.top[n] for rows in channels)

"`m[h]` becomes sum over offsets of shift[h, d] p(x - step d | head), and 1 where nothing is known."
function offset_sum!(m::Vector{Float64}, shift::Matrix{Float64}, rows::ChannelRows, n::Int, head::Int)
    rows.free[n] && return fill!(m, 1.0)
    fill!(m, 0.0)
    row, last, S = rows.first[n], rows.first[n + 1] - 1, length(m)
    @inbounds while row + 3 <= last  # four at a time: m is read and written less often
        p1, p2, p3, p4 = value(rows, head, row), value(rows, head, row + 1), value(rows, head, row + 2), value(rows, head, row + 3)
        d1, d2, d3, d4 = S * rows.offset[row], S * rows.offset[row + 1], S * rows.offset[row + 2], S * rows.offset[row + 3]
        @simd for h in 1:S
            m[h] += muladd(shift[d1 + h], p1, shift[d2 + h] * p2) + muladd(shift[d3 + h], p3, shift[d4 + h] * p4)
        end
        row += 4
    end
    @inbounds while row <= last
        p, d = value(rows, head, row), S * rows.offset[row]
        @simd for h in 1:S
            m[h] = muladd(shift[d + h], p, m[h])
        end
        row += 1
    end
    return m
end

@inline value(rows::ChannelRows, head::Int, row::Int) = @inbounds rows.values[head, row] * rows.factor[row]

# Of a sum whose largest terms are near 1, if they are possible at all: below it, terms may have been lost to underflow.
const LEAST_SUM = 1e-250

# Patches that are done together: on a CPU, their rows and values fit the caches, and all threads have several. Elsewhere a pass is full.
const PATCHES_AT_ONCE = 128

patches_at_once(::CPUEngine) = PATCHES_AT_ONCE * Threads.nthreads()
patches_at_once(e::Engine) = max(PATCHES_AT_ONCE * Threads.nthreads(), samples_at_once(e))

"Some patches, by their numbers, and their rows of each channel under one shape."
struct ShapeRows{R<:ChannelRows}
    own::Vector{Int}
    channels::Vector{R}
end

"""
    emission_scores!(out, emissions, patches, mask = nothing, tried = nothing; seen = nothing)

log p(x_i | h) in nats into `out`, Float32 `(states, positions, samples)`. `patches`: integers `(variables, positions, samples)`; what
`mask`, of the same size or nothing, hides is summed out. With `tried`, UInt16 `(candidates, positions, samples)`, a patch goes through
these shapes only, **from 0**: a lower bound. Exact otherwise: over all offsets of all channels. `seen(k, rows)` is called with
all [`ShapeRows`](@ref) of each shape.
"""
function emission_scores!(out::Array{Float32,3}, em::Emissions, patches::Array{<:Integer,3}, mask=nothing, tried=nothing; seen=nothing)
    V, P, N = size(patches)
    x, all_out, tables = reshape(patches, V, P * N), reshape(out, size(out, 1), P * N), OffsetTables(em)
    hidden = mask === nothing ? nothing : reshape(mask, V, P * N)
    shapes_of = tried === nothing ? nothing : reshape(tried, size(tried, 1), P * N)
    at_once = patches_at_once(em.shapes[1][1])
    tried === nothing || (at_once *= cld(length(em.shapes), size(tried, 1)))  # as many under each shape
    for range in pieces(1:P * N, at_once)
        sums, scale, small = zeros(num_states(em), length(range)), fill(-Inf, length(range)), [Float64[] for _ in range]
        for k in eachindex(em.shapes)
            own = shapes_of === nothing ? collect(1:length(range)) : findall(i -> k - 1 in view(shapes_of, :, range[i]), 1:length(range))
            isempty(own) && continue
            channels = shape_rows(em, k, x[:, range[own]], hidden === nothing ? nothing : hidden[:, range[own]])
            foreach(release!, em.shapes[k])  # there may be hundreds of circuits
            add_shape!(sums, scale, small, em, tables, k, channels, own)
            seen === nothing || seen(k, ShapeRows(range[own], channels))
            pause()
        end
        Threads.@threads for i in eachindex(range)
            for h in 1:num_states(em)
                found = log(sums[h, i]) + scale[i]
                all_out[h, range[i]] = isempty(small[i]) ? found : log_add(found, small[i][h])
            end
        end
        if hidden !== nothing
            for n in range
                all(view(hidden, :, n)) && (all_out[:, n] .= 0f0)
            end
        end
    end
    return nothing
end

shape_rows(em::Emissions, k::Int, x, mask) = [ChannelRows(em, k, c, x, mask) for c in 1:num_channels(em)]

"""
Adds shape `k`'s part of p(x | h) to `sums`, (states, patches), which are to be multiplied by exp(`scale`); patch n of the rows is `own[n]`
there. Where a state's part is so small that its terms may have been lost, the patch's go to `small`, their logarithms, in place of that.
"""
function add_shape!(sums, scale, small, em, tables, k, channels, own)
    threads = Threads.nthreads()
    Threads.@threads for t in 1:threads
        m, product, part = (zeros(num_states(em)) for _ in 1:3)
        for n in t:threads:length(own)
            all(rows -> possible(rows, n), channels) || continue
            fill!(part, 0.0)
            for (head, j) in enumerate(em.joins[k])
                offset_sum!(product, tables.shifts[1], channels[1], n, head)
                for c in 2:length(channels)
                    offset_sum!(m, tables.shifts[c], channels[c], n, head)
                    product .*= m
                end
                @inbounds @simd for h in eachindex(part)
                    part[h] += tables.join[h, j] * product[h]
                end
            end
            if any(<(LEAST_SUM), part)
                isempty(small[own[n]]) && (small[own[n]] = fill(-Inf, num_states(em)))
                add_logarithms!(small[own[n]], em, k, channels, n)
            else
                add_scaled!(view(sums, :, own[n]), scale, own[n], part, scale_of(channels, n))
            end
        end
    end
end

"Adds `part`, times exp(`own`), to `sum`, times exp(`scale[i]`), at the larger of both scales."
function add_scaled!(sum, scale, i, part, own)
    if own > scale[i]
        sum .*= exp(scale[i] - own)
        scale[i] = own
    end
    sum .+= exp(own - scale[i]) .* part
end

"The same of patch `n` of the rows, in the log domain: to `totals`, (states,)."
function add_logarithms!(totals, em::Emissions, k, channels, n)
    for (head, j) in enumerate(em.joins[k]), h in 1:num_states(em)
        term = log(Float64(em.join[h, j])) + sum(log_offset_sum(em.shifts[c], rows, n, h, head) for (c, rows) in enumerate(channels))
        totals[h] = log_add(totals[h], term)
    end
end

function log_offset_sum(shift, rows::ChannelRows, n, h, head)
    rows.free[n] && return 0.0
    return mapreduce(log_add, rows_of(rows, n); init=-Inf) do row
        log(Float64(shift[h, rows.offset[row] + 1])) + log(Float64(rows.values[head, row])) + rows.scale[row]
    end
end

log_add(a, b) = (top = max(a, b); top == -Inf ? top : top + log1p(exp(min(a, b) - top)))

"""
What the joins and the offsets of one patch have of the weights of states: room for one thread. `joint[i, r]`: that of state `active[i]`
with head r; `of_rows[c][r, row]`: that of head r with the offset of a row, from the patch's first; `of_offsets[c][i, row]`: that of the
state with the offset.
"""
struct ShareRoom
    active::Vector{Int}
    weight::Vector{Float64}
    joint::Matrix{Float64}
    of_rows::Vector{Matrix{Float64}}
    of_offsets::Vector{Matrix{Float64}}
    sums::Vector{Vector{Float64}}
    shifts::Vector{Matrix{Float64}}
    own::Vector{Float64}        # of one head: that of each state, but for the values' probability
    back::Vector{Float64}
end

function ShareRoom(em::Emissions)
    S, R, D = num_states(em), maximum(length, em.joins), [size(shift, 2) for shift in em.shifts]
    return ShareRoom(Int[], Float64[], zeros(S, R), [zeros(R, d) for d in D], [zeros(S, d) for d in D], [zeros(S) for _ in D],
                     [zeros(S, d) for d in D], zeros(S), zeros(S))
end

"""
Fills `room` for patch `n` of shape `k`'s rows. `room.weight[i]` is the weight of state `room.active[i]` over p(x | h), in the scale of
the shape's values. Rows have nothing of a head whose share of the patch is not above `least`.
"""
function patch_shares!(room::ShareRoom, em::Emissions, tables::OffsetTables, k::Int, channels, n::Int, least::Real=0.0)
    count, joins = length(room.active), em.joins[k]
    for (c, rows) in enumerate(channels)
        own = rows_of(rows, n)
        for (place, row) in enumerate(own), i in 1:count
            @inbounds room.shifts[c][i, place] = tables.shifts[c][room.active[i], rows.offset[row] + 1]
            @inbounds room.of_offsets[c][i, place] = 0.0
        end
    end
    for (head, j) in enumerate(joins)
        for (c, rows) in enumerate(channels)
            active_sum!(room.sums[c], room.shifts[c], rows, n, head, count)
        end
        @inbounds for i in 1:count
            room.own[i] = room.weight[i] * tables.join[room.active[i], j]
        end
        times_others!(room, 0, count)
        total = 0.0
        @inbounds @simd for i in 1:count
            room.joint[i, head] = room.back[i]
            total += room.back[i]
        end
        for (c, rows) in enumerate(channels)
            if total > least
                row_shares!(room, channels, c, n, head, count)
            else
                room.of_rows[c][head, 1:length(rows_of(rows, n))] .= 0.0
            end
        end
    end
    for (c, rows) in enumerate(channels), place in 1:length(rows_of(rows, n))
        @inbounds @simd for i in 1:count
            room.of_offsets[c][i, place] *= room.shifts[c][i, place]
        end
    end
end

"What the rows of channel `c` have of head `head`; of their offsets, but for the offset's probability, the sum over heads."
function row_shares!(room, channels, c, n, head, count)
    rows, back, offsets, shifts = channels[c], times_others!(room, c, count), room.of_offsets[c], room.shifts[c]
    for (place, row) in enumerate(rows_of(rows, n))
        p, total = value(rows, head, row), 0.0
        @inbounds @simd for i in 1:count
            offsets[i, place] += back[i] * p
            total += back[i] * shifts[i, place]
        end
        room.of_rows[c][head, place] = total * p
    end
end

"`room.back` becomes `room.own` times the sums of all channels but `c`."
function times_others!(room, c, count)
    back, own = room.back, room.own
    @inbounds @simd for i in 1:count
        back[i] = own[i]
    end
    for (other, sums) in enumerate(room.sums)
        other == c && continue
        @inbounds @simd for i in 1:count
            back[i] *= sums[i]
        end
    end
    return back
end

function active_sum!(m, shifts, rows, n, head, count)
    if rows.free[n]
        m[1:count] .= 1.0
        return
    end
    m[1:count] .= 0.0
    for (place, row) in enumerate(rows_of(rows, n))
        p = value(rows, head, row)
        @inbounds @simd for i in 1:count
            m[i] = muladd(shifts[i, place], p, m[i])
        end
    end
end

"""
The states of patch `n` with more than `least` of `weights`, and their weights over p(x | h) = exp(`scores`), in the scale of the rows,
which is chosen such that nothing is lost that any of these states needs.
"""
function activate!(room::ShareRoom, em::Emissions, channels, n::Int, weights, scores, least)
    empty!(room.active)
    empty!(room.weight)
    for h in eachindex(weights)
        weights[h] > least && scores[h] > -Inf && push!(room.active, h)
    end
    scale = scale_for!(em, channels, n, room.active, scores)
    for h in room.active
        push!(room.weight, weights[h] * exp(scale - scores[h]))
    end
end

"What is taken out of the values of patch `n`: less than usual where that would lose what one of the `states` needs."
function scale_for!(em::Emissions, channels, n::Int, states, scores)
    usual = scale_of(channels, n)
    any(h -> scores[h] < usual - 300, states) || return usual
    for (c, rows) in enumerate(channels)
        rows.free[n] && continue
        most(row) = log(maximum(em.shifts[c][states, rows.offset[row] + 1]))
        rescale!(rows, n, maximum(rows.scale[row] + most(row) for row in rows_of(rows, n)))
    end
    return scale_of(channels, n)
end

"""
    emission_shares!(joins, offsets, emissions, patches, mask, weights)

Of each patch, how its states' `weights`, Float32 `(states, patches)`, are spread over joins and offsets: `joins`, Float32
`(joins, patches)`, is the sum over h of weights[h] p(j | h, x), and `offsets[c]`, Float32 `(joins, offsets, patches)`, of
weights[h] p(j, d_c | h, x). `offsets` may be empty.
`patches` and `mask`: `(variables, patches)`. A patch that is impossible under its states has zeros.
"""
function emission_shares!(joins::Matrix{Float32}, offsets, em::Emissions, patches::Matrix{<:Integer}, mask, weights::Matrix{Float32})
    V, N = size(patches)
    tables, threads = OffsetTables(em), Threads.nthreads()
    scores = Array{Float32,3}(undef, num_states(em), 1, N)
    emission_scores!(scores, em, reshape(patches, V, 1, N), mask === nothing ? nothing : reshape(mask, V, 1, N))
    rooms = [ShareRoom(em) for _ in 1:threads]
    fill!(joins, 0f0)
    foreach(a -> fill!(a, 0f0), offsets)
    for range in pieces(1:N, PATCHES_AT_ONCE * threads), k in eachindex(em.shapes)
        channels = shape_rows(em, k, patches[:, range], mask === nothing ? nothing : mask[:, range])
        Threads.@threads for t in 1:threads
            for n in t:threads:length(range)
                all(rows -> possible(rows, n), channels) || continue
                room, own = rooms[t], range[n]
                activate!(room, em, channels, n, view(weights, :, own), view(scores, :, 1, own), 0f0)
                patch_shares!(room, em, tables, k, channels, n)
                take_shares!(joins, offsets, room, em, tables, k, channels, n, own)
            end
        end
        pause()
    end
    return nothing
end

function take_shares!(joins, offsets, room, em, tables, k, channels, n, own)
    count = length(room.active)
    for (head, j) in enumerate(em.joins[k])
        for i in 1:count
            joins[j, own] += room.joint[i, head]
        end
        for (c, shares) in enumerate(offsets)
            for (place, row) in enumerate(rows_of(channels[c], n))
                shares[j, channels[c].offset[row] + 1, own] = room.of_rows[c][head, place]
            end
            channels[c].free[n] || continue
            for d in axes(shares, 2), i in 1:count  # nothing is known: as the states have it
                shares[j, d, own] += room.joint[i, head] * tables.shifts[c][room.active[i], d]
            end
        end
    end
end
