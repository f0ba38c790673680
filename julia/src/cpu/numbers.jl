# Inputs without a table, in a tile: their logarithms are brought to one scale for each sample, in which the largest is at most 1.

# Where the largest value of a group has fewer bits, its sample is left to the exact evaluation: exponents add up over variables.
const LEAST_BITS = -2.0^16

function number_values!(ws::Workspace, plan::Plan, gi::Int, X::Union{AbstractMatrix,Masked})
    g, c, bits = plan.groups[gi], plan.circuit, ws.bits
    first, at = TILE * plan.columns[gi].value, TILE * plan.columns[gi].exponent
    top = fill!(ws.top, -Inf)
    for (k, u) in enumerate(g.units)
        log_numbers!(bits, TILE * (k - 1), c, u, X, ws.samples)
        @inbounds for s in 1:TILE
            top[s] = max(top[s], bits[TILE * (k - 1) + s])
        end
    end
    @inbounds for s in 1:TILE
        certain = top[s] > LEAST_BITS
        exponent = certain ? ceil(Int32, top[s]) : Int32(0)
        ws.exponents[at + s] = exponent
        for k in 0:width(g) - 1
            ws.values[first + TILE * k + s] = certain ? exp2(bits[TILE * k + s] - exponent) : 0f0
        end
    end
    input_losses!(ws, plan, gi, LOSS)
end

"The binary logarithms of a unit's values for the samples of a tile; 0 where they are hidden."
function log_numbers!(bits, at::Int, c::Circuit, u, X, samples)
    v, unit = c.variable[u], 1 / log(2.0)
    if c.kind[u] == POISSON
        rate = entry(c, u, 0)
        for s in 1:TILE
            bits[at + s] = is_known(X, v, samples[s]) ? unit * log_poisson(known(X, v, samples[s]), rate) : 0.0
        end
    else
        mean, deviation = entry(c, u, 0), entry(c, u, 1)
        for s in 1:TILE
            bits[at + s] = is_known(X, v, samples[s]) ? unit * log_gaussian(Float64(known(X, v, samples[s])), mean, deviation) : 0.0
        end
    end
end

function number_statistics!(stat::Statistics, ws::Workspace, plan::Plan, gi::Int, X::Union{AbstractMatrix,Masked})
    g, flow = plan.groups[gi], TILE * plan.columns[gi].flow
    for (k, u) in enumerate(g.units), s in 1:TILE
        f = ws.flows[flow + TILE * (k - 1) + s]
        f > 0 && is_known(X, g.variable, ws.samples[s]) &&
            add_number_flow!(stat.leaf, plan.circuit, u, known(X, g.variable, ws.samples[s]), f)
    end
end
